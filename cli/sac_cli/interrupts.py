"""Ctrl-C during long work: never lost, and never in the middle of what must be whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Remembered:
    """Whether Ctrl-C was pressed."""

    pressed = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was pressed, although the first one came to nothing."""
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def remembered() -> Iterator[Remembered]:
    """Ctrl-C raises KeyboardInterrupt as ever; `check` raises it again, for libraries that swallow what they do not
    expect (a bare `except` around an optional import is enough)."""
    state = Remembered()

    def interrupt(number: int, frame: FrameType | None) -> None:
        state.pressed = True
        raise KeyboardInterrupt

    with _handling(interrupt):
        yield state


class Asked:
    """What Ctrl-C asked for, and how far the run is."""

    stop = False
    begun = False
    step = 0


@contextmanager
def after_step() -> Iterator[Asked]:
    """Ctrl-C asks a run to stop after its step; before the first step, or the second time, it ends it at once."""
    asked = Asked()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if asked.stop:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        asked.stop = True
        if not asked.begun:  # nothing to save yet
            raise KeyboardInterrupt
        # One plain write: a handler must not wait for locks that the interrupted code may hold.
        os.write(2, b"\nstopping after this step; Ctrl-C again kills\n")

    with _handling(interrupt):
        yield asked


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    # A shell starts background jobs with Ctrl-C ignored: that is to stay so. Only the main thread may set handlers.
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
