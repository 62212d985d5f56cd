"""A library as a document index: upsert, get and delete by id, and retrieve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.indexing.base import DeleteResponse, DocumentIndex, UpsertResponse
from pydantic import ConfigDict

from langchain_sac.vectorstores import SacVectorStore


class SacDocumentIndex(DocumentIndex):
    """Over a SacVectorStore. Retrieved documents lead to their memories, as those of `store.as_retriever` do."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    store: SacVectorStore
    k: int = 4
    """Documents retrieved."""

    def upsert(self, items: Sequence[Document], /, **kwargs: Any) -> UpsertResponse:
        """All or none are stored; see `SacVectorStore.add_documents`."""
        return UpsertResponse(succeeded=self.store.add_documents(list(items), **kwargs), failed=[])

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Remove documents by id; ids that are not stored are passed over. ValueError without ids."""
        if ids is None:
            raise ValueError("delete needs ids; store.delete() removes all documents")
        there = {d.id for d in self.store.get_by_ids(ids)}
        gone = [i for i in dict.fromkeys(ids) if i in there]
        self.store.delete(gone)
        return DeleteResponse(num_deleted=len(gone), succeeded=gone, num_failed=0, failed=[])

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        return self.store.get_by_ids(ids)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.store.similarity_search(query, self.k, sac_metadata=True, distinct=True)
