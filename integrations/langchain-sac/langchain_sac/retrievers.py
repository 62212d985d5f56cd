"""Passages of a sac-rag library as LangChain documents."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from langchain_sac.opening import LibraryUser
from langchain_sac.searching import search, to_documents
from sac_rag.library.filters import all_of


class SacRetriever(LibraryUser, BaseRetriever):
    """Retrieves passages. `page_content` is the passage's own text, for any model and any reranker.

    `metadata` holds JSON alone: sac_id, sac_tag and sac_text_sha (for `format_docs_sac`), document (uri), start and end
    (characters in the document's text), score, heading, and the document's own metadata. Where that has one of these
    names it stays, and the other is called sac_document, sac_start and so on.
    """

    model_config = ConfigDict(extra="forbid")

    k: int = 5
    """Documents returned; a call may ask for another number: `retriever.invoke(question, k=2)`."""
    search_type: Literal["hybrid", "dense", "lexical", "mmr"] = "hybrid"
    """"hybrid" fuses "dense" and "lexical"; "mmr" takes diverse ones of its results."""
    rerank: str | None = None
    """A cross-encoder that orders what was found, as in `AskConfig.rerank`; not with "mmr"."""
    where: dict[str, Any] | None = None
    """Metadata filter, as in `SacRag.retrieve`; a call's own `where`, or `filter`, comes in addition."""

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
        filter: dict[str, Any] | None = None,
    ) -> list[Document]:
        return self._found(query, k, all_of(where, filter))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: dict[str, Any] | None = None,
        filter: dict[str, Any] | None = None,
    ) -> list[Document]:
        return await asyncio.to_thread(self._found, query, k, all_of(where, filter))

    def _found(self, query: str, k: int | None, where: dict[str, Any] | None) -> list[Document]:
        rag = self.newest()
        both = all_of(self.where, where)
        hits = search(rag, query, self.k if k is None else k, self.search_type, both, rerank=self.rerank)
        return to_documents(rag, hits, both)
