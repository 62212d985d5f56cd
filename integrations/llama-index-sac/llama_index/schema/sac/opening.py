"""The library behind a component: one that is open, or one that is opened when it is first needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import BaseModel

from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag import SacRag


def known(component: type[BaseModel], settings: Mapping[str, Any], told: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of a component. told: names that its own `to_dict` adds, which are passed over. Raises ConfigError for a
    setting that it does not have: LlamaIndex's components would swallow it."""
    given = {name: value for name, value in settings.items() if name not in told}
    if unknown := sorted(set(given) - set(component.model_fields)):
        names = ", ".join(name for name in component.model_fields if name in component.__annotations__)
        raise ConfigError(f"{component.__name__} takes no {unknown[0]!r}; it takes rag, {names}")
    return given


class Source:
    """`rag`, open and the caller's to close, or `library`, a folder for which the process shares one reader.

    A path in place of `rag` is a folder as well. ValueError when neither or both are given. A copy shares what is open;
    what was pickled is opened again, by its folder, where it is unpickled.
    """

    def __init__(
        self,
        rag: SacRag | str | os.PathLike[str] | None = None,
        library: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(rag, str | os.PathLike):
            if library is not None:
                raise ValueError(f"rag is the folder {os.fspath(rag)!r} and library {os.fspath(library)!r}: give one")
            rag, library = None, rag
        if (rag is None) == (library is None):
            raise ValueError('give an open SacRag or library="FOLDER" (one of them, not both)')
        self._rag, self._follows = rag, rag is None
        self._folder = Path(library).absolute() if library is not None else None
        self._given = str(rag.library.path if rag is not None else library)

    def __getstate__(self) -> dict[str, Any]:
        folder = self._folder if self._rag is None else Path(self._rag.library.path)
        return {"_rag": None, "_follows": True, "_folder": folder, "_given": self._given}

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self

    @property
    def name(self) -> str:
        """The library's folder, as given."""
        return self._given

    @property
    def rag(self) -> SacRag:
        """Opened at first use, which loads the model."""
        if self._rag is None:
            from sac_rag.pipeline import shared_reader

            assert self._folder is not None
            self._rag = shared_reader(self._folder)
        return self._rag

    def newest(self) -> SacRag:
        """`rag`, at the newest generation if it was opened here."""
        rag = self.rag
        if self._follows:
            rag.library.refresh()
        return rag
