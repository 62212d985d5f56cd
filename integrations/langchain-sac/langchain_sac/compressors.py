"""Documents of any retriever, given memories on their way to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict

from langchain_sac.formatting import sac_metadata
from langchain_sac.messages import Scope
from langchain_sac.opening import LibraryUser
from sac_rag.answer.tags import text_digest


class SacDocumentCompressor(LibraryUser, BaseDocumentCompressor):
    """Compresses each document's text into a memory and names it in the metadata; text, order and number stay.

    Memories are held by the library's SacRag in this process, not stored: texts that come again are not compressed
    again. Give the same `rag` or `library` to the ChatSac that reads them.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    meta: dict[str, Any] | None = None
    """What the memories are known by to the `where` of a ChatSac, {"tenant": "a"} say; without it they fit none."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The same documents with sac_id, sac_tag and sac_text_sha. Blank ones stay as they are."""
        rag = self.opened()
        scope = Scope(rag, (self.meta,), follows=self._follows)
        texts = [d.page_content for d in documents if d.page_content.strip() and not _remembered(d, scope)]
        ids = dict(zip(texts, rag.remember(texts, meta=self.meta), strict=True)) if texts else {}
        return [
            d.model_copy(update={"metadata": {**d.metadata, **sac_metadata(rag, ids[d.page_content], d.page_content)}})
            if d.page_content in ids and not _remembered(d, scope)
            else d
            for d in documents
        ]

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)


def _remembered(document: Document, scope: Scope) -> bool:
    """Whether a document comes with a memory of its text that can be read here."""
    tag, digest = document.metadata.get("sac_tag"), document.metadata.get("sac_text_sha")
    return isinstance(tag, str) and digest == text_digest(document.page_content) and scope.reads(tag)
