"""Passages of a sac-rag library as LlamaIndex nodes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters
from llama_index.schema.sac.base import node_of
from llama_index.schema.sac.filters import where_of
from llama_index.schema.sac.opening import Source

from sac_rag.config import AskConfig
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag import SacRag


class SacRetriever(BaseRetriever):
    """Retrieves from an open `sac_rag.SacRag`, which stays the caller's to close.

    k, similarity_top_k: nodes returned, 5 by default. search: "hybrid", "dense" or "lexical". where: metadata filter,
    as in `SacRag.retrieve`; filters: the same as LlamaIndex writes it. min_score: drop passages whose cosine is lower.
    tags: return SacNodes, which keep their memory's tag. Nodes hold the passage's own text, which any model reads as
    text and a `SacLLM` of the library as memory; their metadata sac_id, document (uri), start and end (characters in
    the document's text), score and heading. What a query transform wants to be searched by (HyDE) is embedded.
    """

    def __init__(
        self,
        rag: SacRag | str | os.PathLike[str] | None = None,
        k: int | None = None,
        *,
        similarity_top_k: int | None = None,
        search: str = "hybrid",
        where: Mapping[str, Any] | None = None,
        filters: MetadataFilters | None = None,
        min_score: float | None = None,
        rerank: str | None = None,
        tags: bool = False,
        library: str | os.PathLike[str] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._source = Source(rag, library)
        self.where = where_of(filters, where)
        if k is not None and similarity_top_k is not None and k != similarity_top_k:
            raise ConfigError(f"k is {k} and similarity_top_k {similarity_top_k}: give one of them")
        number = next((n for n in (k, similarity_top_k) if n is not None), 5)
        self.ask = AskConfig(k=number, search=search, min_score=min_score, rerank=rerank)
        self.tags = tags

    @classmethod
    def from_library(cls, library: str | os.PathLike[str], k: int = 5, **settings: Any) -> Self:
        """Over a library's folder, which is opened for reading at the first retrieval."""
        return cls(None, k, library=library, **settings)

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    @property
    def similarity_top_k(self) -> int:
        """Nodes returned; it may be set, as that of other retrievers."""
        return self.ask.k

    @similarity_top_k.setter
    def similarity_top_k(self, k: int) -> None:
        self.ask = dataclasses.replace(self.ask, k=k)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        rag = self._source.newest()
        # Not `embedding`: another retriever, of another embedder, may have put it there.
        embedded = query_bundle.custom_embedding_strs or ()
        hits = rag.retrieve(query_bundle.query_str, self.ask, where=self.where, embedded=embedded)
        return [NodeWithScore(node=node_of(rag, hit, tags=self.tags), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
