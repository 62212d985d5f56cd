"""The embedder of a library as a LlamaIndex embed_model."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.schema.sac.opening import Source, known

if TYPE_CHECKING:
    from sac_rag import SacRag


class SacEmbedding(BaseEmbedding):
    """Vectors as the library stores them: unit length, with the model's own prompts for questions and passages."""

    library: str | None = Field(default=None, description="Folder of the library.")

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | str | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
        if rag is not None and not isinstance(rag, str | os.PathLike):
            settings.setdefault("model_name", rag.config.embedder)
        super().__init__(**{**known(SacEmbedding, settings), "library": source.name})
        self._source = source

    @classmethod
    def class_name(cls) -> str:
        return "SacEmbedding"

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    def _encode(self, texts: list[str], kind: str) -> list[list[float]]:
        vectors: list[list[float]] = self._source.rag.embed(texts, kind=kind).tolist()
        return vectors

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encode([query], "query")[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._encode([text], "passage")[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encode(texts, "passage")

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
