"""Compressing as a step of an ingestion pipeline."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.schema.sac.base import is_text
from llama_index.schema.sac.documents import compress, foreign_node, refs, replaced
from llama_index.schema.sac.opening import Source, known

if TYPE_CHECKING:
    from sac_rag import SacRag


class SacCompressor(TransformComponent):
    """Compresses nodes into a library open for writing, under their ids, and passes them on as they are.

    Stored nodes of an older version of the same document, by the document's hash, go. Of documents that are gone
    altogether a step is not told: `sync` removes what a docstore does not know any more. store=False holds the
    memories in this process only. A `SacNodePostprocessor` or `SacSynthesizer` of the same library finds them again,
    whichever vector store the nodes went through.
    """

    library: str | None = Field(default=None, description="Folder of the library.")
    store: bool = Field(default=True, description="Whether memories are stored in the library.")
    meta: dict[str, Any] | None = Field(
        default=None, description="With store=False, as that of the SacNodePostprocessor which finds them again."
    )

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | str | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
        super().__init__(**{**known(SacCompressor, settings, ("generation",)), "library": source.name})
        self._source = source

    @classmethod
    def class_name(cls) -> str:
        return "SacCompressor"

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        # A pipeline's cache goes by this: a library that changed since is written to again. Digested: whoever knows a
        # library's name can sign its tags.
        head = self._source.newest().library.head
        state = hashlib.sha256(f"{head.library}:{head.generation}".encode()).hexdigest()
        return {**super().to_dict(**kwargs), "generation": state}

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        if self.store:
            # Another store may want another embedder's vectors; the library's own are taken over.
            with self.rag.changing():
                compress(self.rag, nodes, embedded=foreign_node(self.rag, nodes) is None)
                self._forget(replaced(self.rag, nodes))
        elif texts := [n.get_content(MetadataMode.NONE) for n in nodes if is_text(n)]:
            self.rag.remember(texts, meta=self.meta)
        return nodes

    def sync(self, docstore: BaseDocumentStore) -> list[str]:
        """Remove nodes of documents that a docstore does not hold (any more); returns the ids of these documents.

        With `DocstoreStrategy.UPSERTS_AND_DELETE` that is what the pipeline removed from its vector store.
        """
        with self.rag.changing():
            stored = refs(self.rag)
            gone = {r for _, r in stored if r and docstore.get_document_hash(r) is None}
            self._forget([n for n, r in stored if r in gone])
        return sorted(gone)

    def _forget(self, ids: Sequence[str]) -> None:
        if ids:
            self.rag.remove(ids)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        return await asyncio.to_thread(self, nodes, **kwargs)
