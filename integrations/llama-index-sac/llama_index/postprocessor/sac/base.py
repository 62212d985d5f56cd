"""Any retriever's nodes as nodes with memories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.schema.sac.base import is_text, stored_tag, with_tag
from llama_index.schema.sac.opening import Source, known

if TYPE_CHECKING:
    from sac_rag import SacRag


class SacNodePostprocessor(BaseNodePostprocessor):
    """Turns text nodes into SacNodes; put it last, behind rerankers.

    A node that the library holds under its id, with the same text, gets the stored memory. Others are compressed
    and held in memory, so that the next time costs nothing; with remember=False they stay text.
    """

    library: str | None = Field(default=None, description="Folder of the library.")
    remember: bool = Field(default=True, description="Whether to compress nodes that the library does not hold.")
    meta: dict[str, Any] | None = Field(
        default=None,
        description="What these are known by to the `where` of a SacLLM; without it they fit none.",
    )

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | str | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
        super().__init__(**{**known(SacNodePostprocessor, settings), "library": source.name})
        self._source = source

    @classmethod
    def class_name(cls) -> str:
        return "SacNodePostprocessor"

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        rag = self._source.newest()
        tags = {i: stored_tag(rag, n.node) for i, n in enumerate(nodes) if is_text(n.node)}
        left = [i for i, tag in tags.items() if tag is None]
        if left and self.remember:
            ids = rag.remember([nodes[i].node.get_content(MetadataMode.NONE) for i in left], meta=self.meta)
            tags |= dict(zip(left, map(rag.tag, ids), strict=True))
        return [
            NodeWithScore(node=with_tag(rag, n.node, tag), score=n.score) if (tag := tags.get(i)) else n
            for i, n in enumerate(nodes)
        ]
