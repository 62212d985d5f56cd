"""Search in a library, and what is found as LangChain documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document

from langchain_sac.formatting import sac_metadata
from langchain_sac.storing import visible

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.records import Hit

FETCH_K = 20
"""Candidates of a search for diversity, at least."""


def search(
    rag: SacRag, query: str, k: int, mode: str, where: Mapping[str, Any] | None, *, rerank: str | None = None
) -> list[Hit]:
    """The best k passages. mode: as in `AskConfig.search`, or "mmr" (hybrid, then maximal marginal relevance). rerank:
    as in AskConfig; ConfigError with "mmr", which has an order of its own."""
    from sac_rag.config import AskConfig
    from sac_rag.errors import ConfigError

    if mode == "mmr":
        if rerank:
            raise ConfigError(f"search_type is 'mmr', and rerank {rerank!r}: each would undo the other's order")
        return rag.diverse(query, k, fetch=max(FETCH_K, 4 * k), where=where, distinct=True)
    return rag.retrieve(query, AskConfig(k=k, search=mode, rerank=rerank), where=where)


def query_vector(rag: SacRag, query: str) -> Any:
    """The embedding of a question, float32 of shape (dim,)."""
    return rag.embed([query], kind="query")[0]


def to_documents(rag: SacRag, hits: Sequence[Hit], where: Mapping[str, Any] | None = None) -> list[Document]:
    """Passages with their place, score and memory, and with the metadata of the documents they are from. where: the
    filter by which they were found."""
    from sac_rag.library.joined import owners_of

    owners = owners_of(rag.library, [h.passage.document for h in hits], where)
    metas = {uri: d.meta for uri, d in owners.items()}
    return [
        Document(
            page_content=h.passage.text, metadata=_about(rag, h, metas.get(h.passage.document, {})), id=h.passage.id
        )
        for h in hits
    ]


def _about(rag: SacRag, hit: Hit, document: Mapping[str, Any]) -> dict[str, Any]:
    p = hit.passage
    theirs = {**visible(document), **visible(p.meta)}
    ours = {"document": p.document, "start": p.start, "end": p.end, "score": hit.score, "heading": p.heading}
    placed = {f"sac_{k}" if k in theirs else k: v for k, v in ours.items()}
    return {**theirs, **placed, **sac_metadata(rag, p.id, p.text)}
