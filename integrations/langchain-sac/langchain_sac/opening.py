"""The library behind a component: one that is open, or one that is opened when it is first needed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

from langchain_core.runnables.base import RunnableBindingBase
from pydantic import BaseModel, Field, PrivateAttr, model_validator

from sac_rag.library.filters import fitting

if TYPE_CHECKING:
    from sac_rag import SacRag


class LibraryUser(BaseModel):
    """Base of components that read a library. Making one opens and loads nothing."""

    rag: Any = Field(default=None, exclude=True, repr=False)
    """An open `sac_rag.SacRag`, the caller's to close. Typed loosely: importing this package never imports torch."""
    library: str | None = None
    """In place of `rag`: a library's folder, by default SAC_LIBRARY. It is opened at first use; all components of the
    process share it."""
    _follows: bool = PrivateAttr(default=False)
    """Whether `rag` was opened here."""

    @model_validator(mode="before")
    @classmethod
    def _known_where(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        rag, library = values.get("rag"), values.get("library")
        if isinstance(rag, str | os.PathLike):
            raise ValueError(f"rag is the path {os.fspath(rag)!r}: write library={os.fspath(rag)!r}")
        if rag is None and library is None and cls._needs_library():
            library = os.environ.get("SAC_LIBRARY")
            if not library:
                raise ValueError(
                    f'{cls.__name__} needs rag=SacRag.open("my.lib"), library="my.lib" or SAC_LIBRARY being set'
                )
        if rag is None and library is None:
            return values
        path = str(rag.library.path) if rag is not None else os.fspath(library or "")
        if library is not None and os.path.abspath(library) != os.path.abspath(path):
            raise ValueError(f"rag is the library {path!r}, library says {os.fspath(library)!r}: give one of them")
        return {**values, "library": path}

    @model_validator(mode="after")
    def _filters_known(self) -> Self:
        """Refuse a filter that is none here, not at the first tag that comes along."""
        fitting(getattr(self, "where", None))
        return self

    @classmethod
    def _needs_library(cls) -> bool:
        return True

    def __getstate__(self) -> dict[Any, Any]:
        """What another process needs is the folder; it opens the library again when it is first used there."""
        state = super().__getstate__()
        private = {**(state["__pydantic_private__"] or {}), "_follows": False}
        return {**state, "__dict__": {**state["__dict__"], "rag": None}, "__pydantic_private__": private}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy in this process shares what is open."""
        memo = {} if memo is None else memo
        if self.rag is not None:
            memo[id(self.rag)] = self.rag
        return super().__deepcopy__(memo)

    @classmethod
    def from_library(cls, path: str | os.PathLike[str], **settings: Any) -> Self:
        """The component over a library's folder, which is opened at first use."""
        return cls(library=os.fspath(path), **settings)

    def opened(self) -> SacRag:
        """The library, opened now if it was not. Raises what `SacRag.open` raises."""
        if self.rag is None:
            assert self.library is not None
            self.rag, self._follows = shared(self.library), True
        rag: SacRag = self.rag
        return rag

    def newest(self) -> SacRag:
        """`opened()`, at the newest generation if it was opened here: what others index meanwhile is found."""
        rag = self.opened()
        if self._follows:
            rag.library.refresh()
        return rag


def shared(library: str | os.PathLike[str]) -> SacRag:
    """See `sac_rag.pipeline.shared_reader`, which is imported at the first use: it brings torch."""
    from sac_rag.pipeline import shared_reader

    return shared_reader(library)


def rag_of(source: Any) -> SacRag:
    """The open SacRag of a SacRag, a folder or a component."""
    source = _unbound(source)
    if isinstance(source, LibraryUser):
        return source.opened()
    rag: SacRag = shared(source) if isinstance(source, str | os.PathLike) else source
    return rag


def user_of(source: Any) -> dict[str, Any]:
    """Fields of a `LibraryUser` for a SacRag, a folder or another component."""
    source = _unbound(source)
    if isinstance(source, LibraryUser):
        return {"rag": None if source._follows else source.rag, "library": source.library}
    if isinstance(source, str | os.PathLike):
        return {"library": os.fspath(source)}
    return {"rag": source}


def _unbound(source: Any) -> Any:
    """A component without what `bind`, `with_config` and the like put around it."""
    while isinstance(source, RunnableBindingBase):
        source = source.bound
    return source
