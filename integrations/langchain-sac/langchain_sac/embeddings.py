"""The embedder of a library, or any of the embedders that libraries are made with."""

from __future__ import annotations

from typing import Self

from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict, model_validator

from langchain_sac.opening import LibraryUser


class SacEmbeddings(LibraryUser, Embeddings):
    """Unit vectors by a library's embedder, or without a library by `model`. Loaded by the first text.

    The async methods run in a thread.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    """An embedder by name, folder or hub id, in place of a library."""

    @model_validator(mode="after")
    def _one_embedder(self) -> Self:
        if self.model is not None and self.library is not None:
            raise ValueError(f"model is {self.model!r}, but {self.library!r} has its own embedder: give one of them")
        return self

    @classmethod
    def _needs_library(cls) -> bool:
        return False

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self._encode(texts, "passage")

    def embed_query(self, text: str) -> list[float]:
        return self._encode([text], "query")[0]

    def _encode(self, texts: list[str], kind: str) -> list[list[float]]:
        if self.rag is not None or self.library is not None:
            vectors: list[list[float]] = self.opened().embed(texts, kind=kind).tolist()
            return vectors
        from sac_rag.config import DEFAULT_EMBEDDER
        from sac_rag.models.embedder import Embedder

        found: list[list[float]] = Embedder.shared(self.model or DEFAULT_EMBEDDER).encode(texts, kind=kind).tolist()
        return found
