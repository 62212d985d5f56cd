"""A sac-rag library as a LlamaIndex vector store: what is added is compressed, what is found can be read as memory."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.schema.sac.base import offered, stored_tag, with_tag
from llama_index.schema.sac.documents import compress, foreign_node, node_from, replaced
from llama_index.schema.sac.filters import where_of
from llama_index.schema.sac.opening import Source, known

from sac_rag.library.filters import DOCUMENT, all_of

if TYPE_CHECKING:
    from llama_index.embeddings.sac import SacEmbedding
    from llama_index.llms.sac import SacLLM

    from sac_rag import Hit, IndexConfig, SacRag

logger = logging.getLogger(__name__)

_SEARCH = {
    VectorStoreQueryMode.DEFAULT: "dense",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "hybrid",
    VectorStoreQueryMode.MMR: "dense",
}

_MMR = ("mmr_threshold", "mmr_prefetch_factor", "mmr_prefetch_k")
"""What a query may be given beside the VectorStoreQuery."""


class SacVectorStore(BasePydanticVectorStore):
    """Over a `sac_rag.SacRag` open for writing; `from_library` opens one.

    `add` compresses nodes: a node is a document of the library, its id the uri. Nodes longer than a passage of the
    library become several passages and are found whole. Any model reads found nodes as text, a `SacLLM` of the library
    as memory. tags: return SacNodes, which keep their memory's tag.
    The library searches by its own embedder, so give `VectorStoreIndex` a `SacEmbedding` of the same library, whose
    vectors are taken over, or set is_embedding_query=False: then passages and questions are embedded here, and any
    embed_model will do.
    """

    stores_text: bool = True
    is_embedding_query: bool = True
    library: str | None = Field(default=None, description="Folder of the library.")
    tags: bool = Field(default=False, description="Whether found nodes are SacNodes.")

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | str | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
        super().__init__(**{**known(SacVectorStore, settings), "library": source.name})
        self._source = source

    @classmethod
    def from_library(cls, library: str | os.PathLike[str], config: IndexConfig | None = None, **settings: Any) -> Self:
        """Open a library, made if missing (`config`: with these settings): for reading, and from the first change on
        for writing, until `rag.close()` or until nobody refers to it any more."""
        from sac_rag import SacRag

        return cls(SacRag.open(Path(library), config=config, create=True, later=True), **settings)

    @classmethod
    def class_name(cls) -> str:
        return "SacVectorStore"

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    @property
    def client(self) -> SacRag:
        return self._source.rag

    def llm(self, **settings: Any) -> SacLLM:
        """The library's Llama."""
        from llama_index.llms.sac import SacLLM

        return SacLLM(self.rag, **settings)

    def embed_model(self) -> SacEmbedding:
        """The library's embedder."""
        from llama_index.embeddings.sac import SacEmbedding

        return SacEmbedding(self.rag)

    def storage_context(self) -> StorageContext:
        """For `VectorStoreIndex.from_documents`."""
        return StorageContext.from_defaults(vector_store=self)

    # -- writing -----------------------------------------------------------------------------------------

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Compress and store nodes; a known id is replaced, and so are an older version of a node's document and the
        same piece of it under another id, which an index without its docstore would add again. Raises LibraryError when
        open for reading.

        Vectors of a `SacEmbedding` are taken over; ValueError when the nodes come with those of another embedder.
        """
        if self.is_embedding_query:
            self._check_embedder(nodes)
        with self.rag.changing():
            compress(self.rag, nodes, embedded=self.is_embedding_query)
            if gone := replaced(self.rag, nodes):
                self.rag.remove(gone)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document; none is no error."""
        self._remove({"ref_doc_id": ref_doc_id})

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Remove nodes that are among the ids and fit the filters; ValueError when neither is given."""
        if node_ids is None and filters is None:
            raise ValueError("delete_nodes needs node_ids or filters; clear() removes all nodes")
        self._remove(where_of(filters), node_ids)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters)

    def clear(self) -> None:
        """Remove all nodes; documents that were indexed in another way stay."""
        self._remove(None)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    def count(self) -> int:
        """Nodes stored; 0 is an empty store, to be filled."""
        return sum(1 for _ in self._nodes(None))

    def persist(self, persist_path: str, fs: Any = None) -> None:
        """Nothing is left to write: the library's folder has it all. Says how an index over it is loaded."""
        logger.warning(
            "the nodes of this index are in %s, not in %s. Load it with VectorStoreIndex.from_vector_store("
            "SacVectorStore.from_library(...)), or with a docstore by load_index_from_storage("
            "StorageContext.from_defaults(persist_dir=..., vector_store=SacVectorStore.from_library(...)))",
            self.library,
            persist_path,
        )

    def _remove(self, where: Mapping[str, Any] | None, node_ids: Sequence[str] | None = None) -> None:
        with self.rag.changing():
            if uris := [node.node_id for node in self._nodes(node_ids, where)]:
                self.rag.remove(uris)

    # -- reading -----------------------------------------------------------------------------------------

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Stored nodes, by id; with `node_ids`, in their order, unknown ones left out."""
        found = {node.node_id: self._tagged(node) for node in self._nodes(node_ids, where_of(filters))}
        return [found[i] for i in (node_ids if node_ids is not None else found) if i in found]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes, each by its best passage. Modes: default (dense), sparse, text_search, hybrid, and mmr.

        mmr_threshold: 1 is closeness alone; mmr_prefetch_k, or mmr_prefetch_factor times the nodes wanted: how many
        nodes are chosen from, 4 times as many where neither is given. An index hands them on by `vector_store_kwargs`.
        The library fuses by reciprocal rank and has no weights: ValueError for `alpha`, and for other arguments.
        """
        if query.mode not in _SEARCH:
            raise ValueError(f"query mode is {query.mode.value!r}; use {', '.join(m.value for m in _SEARCH)}")
        if query.alpha is not None:
            raise ValueError(f"alpha is {query.alpha}, but hybrid search here has no weights: leave it out")
        if unknown := sorted(set(kwargs) - set(_MMR)):
            raise ValueError(f"a query takes no {unknown[0]!r}; it takes {', '.join(_MMR)}")
        mode, hybrid = _SEARCH[query.mode], _SEARCH[query.mode] == "hybrid"
        wanted = (query.hybrid_top_k if hybrid else None) or query.similarity_top_k
        own: list[dict[str, Any]] = [{"_node_content": {"$ne": None}}]  # documents that are no nodes are left out
        if query.node_ids:
            own.append({DOCUMENT: list(query.node_ids)})
        if query.doc_ids:
            own.append({"ref_doc_id": list(query.doc_ids)})
        where = all_of(where_of(query.filters), *own)
        if query.mode == VectorStoreQueryMode.MMR:
            return self._result(self._diverse(query, wanted, where, **kwargs), where)
        vector = None if mode == "lexical" else self._vector(query)
        library = self._source.newest().newest()
        return self._result(
            _best_of(wanted, wanted, lambda n: library.search(vector, query.query_str, n, mode=mode, where=where)),
            where,
        )

    def _diverse(
        self,
        query: VectorStoreQuery,
        wanted: int,
        where: Mapping[str, Any] | None,
        *,
        mmr_threshold: float | None = None,
        mmr_prefetch_factor: float | None = None,
        mmr_prefetch_k: int | None = None,
    ) -> dict[str, float]:
        """Uris and similarities of nodes close to the question and unlike each other."""
        given = (w for w in (mmr_threshold, query.mmr_threshold, 0.5) if w is not None)
        first = mmr_prefetch_k or int(wanted * (mmr_prefetch_factor or 4))
        vector, rag, weight = self._vector(query).tolist(), self._source.newest(), next(given)
        return _best_of(wanted, first, lambda n: rag.diverse(vector, n, fetch=n, weight=weight, where=where))

    def _result(self, scores: Mapping[str, float], where: Mapping[str, Any] | None) -> VectorStoreQueryResult:
        """Found documents as nodes, in their order. where: the filter by which they were found."""
        from sac_rag.library.joined import owners_of

        known = {uri: node_from(d) for uri, d in owners_of(self.rag.library, list(scores), where).items()}
        best = [(n, s) for uri, s in scores.items() if (n := known.get(uri)) is not None]
        return VectorStoreQueryResult(
            nodes=[self._tagged(node) for node, _ in best],
            similarities=[score for _, score in best],
            ids=[node.node_id for node, _ in best],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _nodes(self, node_ids: Sequence[str] | None, where: Mapping[str, Any] | None = None) -> Iterator[BaseNode]:
        for document in self._source.newest().newest().documents(node_ids, where=where):
            if (node := node_from(document)) is not None:
                yield node

    def _tagged(self, node: BaseNode) -> BaseNode:
        if (tag := stored_tag(self.rag, node)) is None:
            return node
        return with_tag(self.rag, node, tag) if self.tags else offered(self.rag, node, tag)

    def _vector(self, query: VectorStoreQuery) -> Any:
        import numpy as np

        rag = self.rag
        if query.query_embedding is not None and self.is_embedding_query:
            self._check_length(query.query_embedding)
            return np.asarray(query.query_embedding, np.float32)
        if query.query_str is None:
            raise ValueError("the query has neither query_str nor query_embedding; give one")
        return rag.embed([query.query_str], kind="query")[0]

    def _check_length(self, vector: Sequence[float]) -> None:
        if len(vector) != self.rag.embedder.dim:
            raise ValueError(
                f"a vector has {len(vector)} numbers, those of the library's embedder {self.rag.embedder.dim}: pass "
                "embed_model=SacEmbedding(rag)"
            )

    def _check_embedder(self, nodes: Sequence[BaseNode]) -> None:
        for node in nodes:
            if node.embedding is not None:
                self._check_length(node.embedding)
        if (other := foreign_node(self.rag, nodes)) is not None:
            raise ValueError(
                f"node {other.node_id} comes with a vector of another embedder than the library's "
                f"({self.rag.config.embedder}): pass embed_model=SacEmbedding(rag), or set is_embedding_query=False"
            )


def _best_of(wanted: int, first: int, search: Callable[[int], Sequence[Hit]]) -> dict[str, float]:
    """Uris and scores of the best documents, each by its best passage. search: so many passages, `first` at the
    beginning and more until they are of enough documents."""
    limit = first
    while True:
        hits = search(limit)
        scores: dict[str, float] = {}
        for hit in hits:
            scores.setdefault(hit.passage.document, hit.score)
        if len(scores) >= wanted or len(hits) < limit:
            return dict(list(scores.items())[:wanted])
        limit *= 4
