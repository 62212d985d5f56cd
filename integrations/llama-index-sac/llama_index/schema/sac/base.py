"""Text nodes that know the tag of their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
    TextNode,
)

from sac_rag.answer.tags import text_digest
from sac_rag.records import Hit

if TYPE_CHECKING:
    from sac_rag import SacRag

N = TypeVar("N", bound=BaseNode)

_KEPT_FROM_MODELS = ["sac_id", "start", "end", "score"]
"""Metadata that a language model or an embedder has no use for."""


class SacNode(TextNode):
    """A text node with a memory. It renders its text, for every model; a `SacLLM` of the same library that meets the
    text in a prompt reads the memory in its place, and a `SacSynthesizer` does by the tag.
    """

    sac_tag: str = ""
    """Tags of the passages that are the text, a line each."""
    sac_text_sha: str = ""
    """Digest of the text that was compressed."""

    @classmethod
    def class_name(cls) -> str:
        return "SacNode"

    @property
    def remembered(self) -> bool:
        """Whether the memory is that of the text."""
        return bool(self.sac_tag) and text_digest(self.text) == self.sac_text_sha


def node_of(rag: SacRag, hit: Hit, *, tags: bool) -> TextNode:
    """A found passage; `tags`: as a SacNode, whose text the library's LLM knows again."""
    p = hit.passage
    node = TextNode(
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
    return with_tag(rag, node, rag.tag(p.id)) if tags else offered(rag, node, rag.tag(p.id))


def with_tag(rag: SacRag, node: BaseNode, tag: str) -> SacNode:
    """The same node with a memory."""
    text = offered(rag, node, tag).get_content(MetadataMode.NONE)
    shared = {name: getattr(node, name) for name in BaseNode.model_fields}
    own = ("start_char_idx", "end_char_idx", "mimetype", "text_template")
    shared |= {name: getattr(node, name) for name in own if hasattr(node, name)}
    return SacNode(**shared, text=text, sac_tag=tag, sac_text_sha=text_digest(text))


def offered(rag: SacRag, node: N, tag: str) -> N:
    """The node itself; a SacLLM over this library knows its text again from now on."""
    for mode in (MetadataMode.LLM, MetadataMode.NONE):  # with what stands around it there, an adapter reads it without
        rag.offer(node.get_content(mode), tag)
    return node


def is_text(node: BaseNode) -> bool:
    """Whether a node is text and nothing else, and not blank."""
    if isinstance(node, Node):
        plain = not (node.image_resource or node.audio_resource or node.video_resource)
    else:
        plain = isinstance(node, TextNode) and not isinstance(node, ImageNode)
    return plain and bool(node.get_content(MetadataMode.NONE).strip())


def stored_tag(rag: SacRag, node: BaseNode) -> str | None:
    """The tag of a node that a library holds, known by its id; None unless the stored text is the node's own."""
    return rag.stored_tag(node.node_id, node.get_content(MetadataMode.NONE))


def with_stored_memory(rag: SacRag, found: Sequence[NodeWithScore]) -> list[NodeWithScore]:
    """Nodes that the library holds as SacNodes; the others as they are."""
    out = []
    for scored in found:
        tag = stored_tag(rag, scored.node) if is_text(scored.node) else None
        out.append(scored if tag is None else NodeWithScore(node=with_tag(rag, scored.node, tag), score=scored.score))
    return out
