"""Passages of a sac-rag library as LlamaIndex nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode

from sac_rag.config import AskConfig
from sac_rag.records import Hit

if TYPE_CHECKING:
    from sac_rag import SacRag

_KEPT_FROM_MODELS = ["sac_id", "start", "end", "score"]
"""Metadata that a language model or an embedder has no use for."""


class SacRetriever(BaseRetriever):
    """Retrieves from an open `sac_rag.SacRag`, which stays the caller's to close.

    k: nodes returned. search: "hybrid", "dense" or "lexical". where: metadata filter, as in `SacRag.retrieve`.
    Nodes hold the passage's own text; their metadata sac_id, document (uri), start and end (characters in the
    document's text), score and heading.
    """

    def __init__(
        self,
        rag: SacRag,
        k: int = 5,
        *,
        search: str = "hybrid",
        where: Mapping[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self.rag, self.where = rag, where
        self.ask = AskConfig(k=k, search=search)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.rag.retrieve(query_bundle.query_str, self.ask, where=self.where)
        return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _node(hit: Hit) -> TextNode:
    p = hit.passage
    return TextNode(
        id_=p.id,
        text=p.text,
        start_char_idx=p.start,
        end_char_idx=p.end,
        metadata={
            "sac_id": p.id,
            "document": p.document,
            "start": p.start,
            "end": p.end,
            "score": hit.score,
            "heading": p.heading,
        },
        excluded_llm_metadata_keys=_KEPT_FROM_MODELS,
        excluded_embed_metadata_keys=_KEPT_FROM_MODELS,
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=p.document)},
    )
