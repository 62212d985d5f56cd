"""The library behind a component: one that is open, or one that is opened when it is first needed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from sac_rag import SacRag

_LOCK = threading.Lock()
_OPEN: WeakValueDictionary[Path, SacRag] = WeakValueDictionary()


class Source:
    """`rag`, open and the caller's to close, or `library`, a folder for which the process shares one reader.

    ValueError when neither or both are given.
    """

    def __init__(self, rag: SacRag | None = None, library: str | os.PathLike[str] | None = None) -> None:
        if (rag is None) == (library is None):
            raise ValueError('give an open SacRag or library="FOLDER" (one of them, not both)')
        self._rag, self._follows = rag, rag is None
        self._folder = Path(library).absolute() if library is not None else None
        self._given = str(rag.library.path if rag is not None else library)

    @property
    def name(self) -> str:
        """The library's folder, as given."""
        return self._given

    @property
    def rag(self) -> SacRag:
        """Opened at first use, which loads the model."""
        if self._rag is None:
            assert self._folder is not None
            with _LOCK:
                self._rag = _OPEN.get(self._folder)
                if self._rag is None:
                    from sac_rag import SacRag

                    self._rag = _OPEN[self._folder] = SacRag.open(self._folder)
        return self._rag

    def newest(self) -> SacRag:
        """`rag`, at the newest generation if it was opened here."""
        rag = self.rag
        if self._follows:
            rag.library.refresh()
        return rag
