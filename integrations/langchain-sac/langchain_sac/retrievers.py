"""Passages of a sac-rag library as LangChain documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor

from sac_rag.config import AskConfig
from sac_rag.records import Hit


class SacRetriever(BaseRetriever):
    """Retrieves from an open `sac_rag.SacRag`, which stays the caller's to close.

    `page_content` is the passage's own text. `metadata` holds sac_id, document (uri), start and end (characters in
    the document's text), score and heading: plain values, so that documents survive serialisation.
    """

    rag: Any
    """An open `sac_rag.SacRag`. Typed loosely: importing this package never imports torch."""
    k: int = 5
    """Documents returned; a call may ask for another number: `retriever.invoke(question, k=2)`."""
    search: str = "hybrid"
    """"hybrid", "dense" or "lexical"."""
    where: dict[str, Any] | None = None
    """Metadata filter, as in `SacRag.retrieve`."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        ask = AskConfig(k=self.k if k is None else k, search=self.search)
        return [_document(hit) for hit in self.rag.retrieve(query, ask, where=self.where)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, k: int | None = None
    ) -> list[Document]:
        sync = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=sync, k=k)


def _document(hit: Hit) -> Document:
    p = hit.passage
    metadata = {
        "sac_id": p.id,
        "document": p.document,
        "start": p.start,
        "end": p.end,
        "score": hit.score,
        "heading": p.heading,
    }
    return Document(page_content=p.text, metadata=metadata, id=p.id)
