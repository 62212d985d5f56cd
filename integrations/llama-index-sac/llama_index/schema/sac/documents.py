"""Nodes as documents of a library and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llama_index.core.schema import BaseNode, MetadataMode, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict
from llama_index.schema.sac.base import is_text

from sac_rag.records import Document

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.library.library import StoredDocument

logger = logging.getLogger(__name__)


def document_of(node: BaseNode) -> Document:
    """A node as a document: its id as uri, its metadata flat, the node itself beside them."""
    meta = node_to_metadata_dict(node)
    if isinstance(meta.get("pages"), list):  # a reader's, to the library; the node keeps them
        del meta["pages"]
    return Document(node.node_id, node.get_content(MetadataMode.NONE), meta=meta)


def node_from(document: StoredDocument) -> BaseNode | None:
    """The node that a document was made of; None for a document that was none, a file for example."""
    return metadata_dict_to_node(document.meta) if "_node_content" in document.meta else None


def compress(rag: SacRag, nodes: Sequence[BaseNode], *, embedded: bool = False) -> None:
    """Store nodes with their memories in one commit; unchanged ones are skipped, changed ones replaced.

    embedded: the nodes' vectors, where they have one, are the library's embedder's and are taken over.
    """
    for node in nodes:
        if not is_text(node):
            logger.warning("node %s holds no text (or more than text) and is not stored", node.node_id)
    if documents := [document_of(node) for node in nodes if is_text(node)]:
        ready = {n.node_id: n.embedding for n in nodes if embedded and is_text(n) and n.embedding is not None}
        rag.put(documents, vectors=ready, embedder=rag.embedder.fingerprint)


def foreign_node(rag: SacRag, nodes: Sequence[BaseNode]) -> BaseNode | None:
    """A node whose vector is not by the library's embedder, as far as `SacRag.foreign_vector` can tell."""
    given = [n for n in nodes if n.embedding is not None]
    found = rag.foreign_vector([n.get_content(MetadataMode.EMBED) for n in given], [n.embedding for n in given])
    return None if found is None else given[found]


def refs(rag: SacRag) -> list[tuple[str, str | None]]:
    """(id, id of its document) of every stored node."""
    stored = (node_from(d) for d in rag.library.documents())
    return [(node.node_id, node.ref_doc_id) for node in stored if node is not None]


def replaced(rag: SacRag, nodes: Sequence[BaseNode]) -> list[str]:
    """Ids of stored nodes that these take the place of: of another version of the documents that they are from, as the
    documents' hashes say, or the very same piece of one under another id.
    """
    versions = {n.ref_doc_id: _version(n) for n in nodes if n.ref_doc_id}
    mine, pieces = {n.node_id for n in nodes}, {_piece(n) for n in nodes}
    found = []
    for document in rag.library.documents(where={"ref_doc_id": list(versions)}) if versions else ():
        node = node_from(document)
        if node is not None and node.node_id not in mine:
            now, then = versions.get(node.ref_doc_id or ""), _version(node)
            other = now is not None and then is not None and now != then
            if other or _piece(node) in pieces:
                found.append(node.node_id)
    return found


def _piece(node: BaseNode) -> tuple[str | None, int | None, str]:
    start = node.start_char_idx if isinstance(node, TextNode) else None
    return node.ref_doc_id, start, node.get_content(MetadataMode.NONE)


def _version(node: BaseNode) -> str | None:
    source = node.source_node
    return source.hash if source is not None else None
