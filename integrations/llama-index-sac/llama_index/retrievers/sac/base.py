"""Passages of a sac-rag library as LlamaIndex nodes."""

from __future__ import annotations

import asyncio
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

if TYPE_CHECKING:
    from sac_rag import SacRag


class SacRetriever(BaseRetriever):
    """Retrieves from an open `sac_rag.SacRag`, which stays the caller's to close.

    k: nodes returned. search: "hybrid", "dense" or "lexical". where: metadata filter, as in `SacRag.retrieve`;
    filters: the same as LlamaIndex writes it. min_score: drop passages whose cosine is lower.
    tags: return SacNodes, whose text a language model sees as a tag; set it when that model is a `SacLLM`.
    Nodes hold the passage's own text; their metadata sac_id, document (uri), start and end (characters in the
    document's text), score and heading.
    """

    def __init__(
        self,
        rag: SacRag | None = None,
        k: int = 5,
        *,
        search: str = "hybrid",
        where: Mapping[str, Any] | None = None,
        filters: MetadataFilters | None = None,
        min_score: float | None = None,
        tags: bool = False,
        library: str | os.PathLike[str] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._source = Source(rag, library)
        self.where = where_of(filters, where)
        self.ask = AskConfig(k=k, search=search, min_score=min_score)
        self.tags = tags

    @classmethod
    def from_library(cls, library: str | os.PathLike[str], k: int = 5, **settings: Any) -> Self:
        """Over a library's folder, which is opened for reading at the first retrieval."""
        return cls(None, k, library=library, **settings)

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        rag = self._source.newest()
        hits = rag.retrieve(query_bundle.query_str, self.ask, where=self.where)
        tags = [rag.tag(hit.passage.id) if self.tags else None for hit in hits]
        return [NodeWithScore(node=node_of(hit, tag), score=hit.score) for hit, tag in zip(hits, tags, strict=True)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
