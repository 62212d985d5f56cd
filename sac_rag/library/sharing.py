"""The writers of this process: handles of one library take part in one lock, one view and one order of changes."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from sac_rag.library import folder as files

if TYPE_CHECKING:
    from sac_rag.library.library import Library
    from sac_rag.library.view import View

_LOCK = threading.RLock()  # a collected handle may end in the middle of a call that holds it
_TURNS: dict[Path, threading.Lock] = {}
_WRITERS: WeakValueDictionary[tuple[int, int], Writer] = WeakValueDictionary()


class Writer:
    """What the handles of one writer have in common. It ends when the last of them is closed or collected."""

    def __init__(self, lock: files.WriterLock, view: View) -> None:
        self.lock, self.view = lock, view
        self.unsure = False
        """After a failed commit, until the disk was asked what is current."""
        self.writing = threading.RLock()
        self.busy, self.commits = threading.Lock(), threading.RLock()
        self.handles: WeakSet[Library] = WeakSet()
        with _LOCK:
            _WRITERS[lock.identity] = self

    def join(self, handle: Library) -> None:
        with _LOCK:
            self.handles.add(handle)

    def leave(self, handle: Library) -> bool:
        """Whether that was the last handle."""
        with _LOCK:
            self.handles.discard(handle)
            return not self.handles


def turn(folder: Path) -> threading.Lock:
    """Held by a thread that looks for a writer of a library, and becomes it where there is none."""
    with _LOCK:
        return _TURNS.setdefault(folder, threading.Lock())


def writer_of(folder: Path) -> Writer | None:
    """The writer that this process has for a library, if there is one."""
    with contextlib.suppress(OSError), _LOCK:
        found = os.stat(folder / files.LOCK)
        writer = _WRITERS.get((found.st_dev, found.st_ino))
        if writer is not None and writer.lock.held and writer.handles:
            return writer
    return None
