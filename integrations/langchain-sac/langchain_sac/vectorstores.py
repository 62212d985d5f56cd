"""A library as a vector store: adding documents compresses them, finding them loads nothing but text."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_sac.embeddings import SacEmbeddings
from langchain_sac.formatting import sac_metadata
from langchain_sac.searching import FETCH_K, query_vector
from langchain_sac.storing import digest, stored, to_stored, whole
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag import IndexConfig, SacRag
    from sac_rag.records import Hit


class SacVectorStore(VectorStore):
    """Documents by id, searched by cosine similarity. A long document is stored as several passages under one id.

    rag: a SacRag open for writing, the caller's to close. library: in its place a folder, opened at first use (made if
    missing, with `config`): for reading, and from the first change on for writing, until the store is closed or nobody
    refers to it any more. wait: seconds that a change waits for another writer. Searches give documents as
    they were added; `as_retriever` and `sac_metadata=True` add the keys that lead to their memories.
    """

    def __init__(
        self,
        rag: SacRag | None = None,
        *,
        library: str | os.PathLike[str] | None = None,
        config: IndexConfig | None = None,
        wait: float = 0.0,
    ) -> None:
        if (rag is None) == (library is None):
            raise ConfigError('SacVectorStore needs either SacRag.open("my.lib", write=True) or library="my.lib"')
        if rag is not None and config is not None:
            raise ConfigError(f"config is given for {rag.library.path}, which is open with its own: leave it out")
        self._rag, self._library, self._config, self._wait = rag, library, config, wait
        self._own, self._opening = rag is None, threading.Lock()

    @property
    def rag(self) -> SacRag:
        """The library, opened now if it was not; for a ChatSac over the same documents."""
        with self._opening:
            if self._rag is None:
                from sac_rag import SacRag

                assert self._library is not None
                self._rag = SacRag.open(
                    Path(self._library), config=self._config, create=True, later=True, wait=self._wait
                )
            return self._rag

    def __getstate__(self) -> dict[str, Any]:
        path = self._library if self._rag is None else self._rag.library.path
        return {"_library": str(path), "_config": self._config, "_wait": self._wait}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _rag=None, _own=True, _opening=threading.Lock())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def close(self) -> None:
        """Release the library if it was opened here; the next use opens it again."""
        with self._opening:
            if self._own and self._rag is not None:
                self._rag.close()
                self._rag = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def embeddings(self) -> Embeddings:
        return SacEmbeddings(rag=self.rag)

    # -- writing -----------------------------------------------------------------------------------------

    def add_documents(
        self, documents: list[Document], *, ids: Sequence[str | None] | None = None, **kwargs: Any
    ) -> list[str]:
        """Compress and store documents; returns their ids: those given, else the documents' own, else digests of text
        and metadata.

        A document under a known id replaces it; unchanged ones are skipped. Raises ConfigError, before anything is
        stored, for blank documents and metadata that is no JSON. kwargs: batch_size, without effect: what is stored
        does not depend on batches.
        """
        _refuse("add_documents", kwargs, ("ids", "batch_size"))
        return self._add(documents, ids, [None] * len(documents))

    def add_embeddings(
        self,
        text_embeddings: Iterable[tuple[str, list[float]]],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Texts whose vectors are there already, by the `embeddings` of this store; they are not embedded again.

        A text longer than a passage is embedded passage by passage all the same. ConfigError for vectors of another
        embedder; otherwise as `add_documents`.
        """
        pairs = list(text_embeddings)
        if metadatas is not None and len(metadatas) != len(pairs):
            raise ConfigError(f"{len(metadatas)} metadatas for {len(pairs)} texts: give one a text")
        texts, vectors = [t for t, _ in pairs], [v for _, v in pairs]
        rag = self.rag
        if (strange := rag.foreign_vector(texts, vectors)) is not None:
            raise ConfigError(
                f"the vector of text {strange} ({len(vectors[strange])} numbers) is not by the library's embedder "
                f"({rag.config.embedder}, {rag.embedder.dim} numbers): make it with store.embeddings, or use add_texts"
            )
        documents = [
            Document(page_content=t, metadata=m) for t, m in zip(texts, metadatas or [{}] * len(texts), strict=True)
        ]
        return self._add(documents, ids, vectors)

    def _add(self, documents: list[Document], ids: Sequence[str | None] | None, vectors: Sequence[Any]) -> list[str]:
        given = [None] * len(documents) if ids is None else _names(ids)
        if len(given) != len(documents):
            raise ConfigError(f"{len(given)} ids for {len(documents)} documents: give one a document")
        named = [i or d.id or digest(d) for i, d in zip(given, documents, strict=True)]
        latest = dict(zip(named, documents, strict=True))  # of two under one id the later stays
        ready = {i: v for i, v in zip(named, vectors, strict=True) if v is not None}
        from sac_rag.indexing import cut

        rag = self.rag
        new = [to_stored(rag, i, d) for i, d in latest.items()]
        for group in cut(new):  # compressed and committed together
            own = {d.uri: ready[d.uri] for d in group if d.uri in ready}
            rag.put(group, vectors=own, embedder=rag.embedder.fingerprint)
        return named

    def delete(self, ids: list[str] | None = None, *, filter: dict[str, Any] | None = None, **kwargs: Any) -> bool:
        """Remove documents by id, all when `ids` is None; unknown ids are passed over. filter: only those that fit."""
        _refuse("delete", kwargs, ("ids", "filter"))
        rag = self.rag
        with rag.changing() as library:
            names = None if ids is None else [i for i in _names(ids) if i]
            if there := [d.uri for d in library.documents(names, where=_checked(filter))]:
                rag.remove(there)
        return True

    # -- reading -----------------------------------------------------------------------------------------

    def count(self) -> int:
        """Documents stored; 0 is an empty store."""
        return self.rag.newest().head.documents

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Whole documents in the order of `ids`; unknown ids are passed over."""
        from sac_rag.library.joined import owners_of

        library = self.rag.newest()
        named = [i for i in dict.fromkeys(_names(ids)) if i]
        found = owners_of(library, named)
        return [whole(found[i], library.passages(i)) for i in named if i in found]

    def similarity_search(
        self, query: str, k: int = 4, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        """The passages closest to a text, best first.

        filter: as in `sac_rag.library.filters`. score_threshold: the least cosine. distinct: of passages with the same
        words, the best alone. sac_metadata: with the keys that lead to memories. fetch_k: without effect, as filters
        are applied before the k are chosen.
        """
        return [d for d, _ in self.similarity_search_with_score(query, k, filter, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, with the cosine similarity of each: 1 is the same direction."""
        _refuse("a search", kwargs, _SEARCH)
        return self._closest(query_vector(self.rag, query), k, filter, **kwargs)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Document]:
        _refuse("a search", kwargs, _SEARCH)
        return [d for d, _ in self._closest(embedding, k, filter, **kwargs)]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = FETCH_K,
        lambda_mult: float = 0.5,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        vector = query_vector(self.rag, query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Any,
        k: int = 4,
        fetch_k: int = FETCH_K,
        lambda_mult: float = 0.5,
        filter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """k passages of the closest `fetch_k`, close and unlike each other. lambda_mult: 1 is closeness alone."""
        import numpy as np

        _refuse("a search for diversity", kwargs, ("filter", "fetch_k", "lambda_mult", "sac_metadata"))
        vector = np.asarray(embedding, np.float32)
        hits = self.rag.diverse(vector.tolist(), k, fetch=fetch_k, weight=lambda_mult, where=_checked(filter))
        return [d for d, _ in self._documents(hits, filter, **kwargs)]

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """A retriever whose documents carry sac_* metadata, for `format_docs_sac` and ChatSac; no two of the same
        words, unless search_kwargs say distinct=False."""
        settings = {"sac_metadata": True, **kwargs.pop("search_kwargs", {})}
        if kwargs.get("search_type") != "mmr":  # which takes unlike ones anyway
            settings = {"distinct": True, **settings}
        return super().as_retriever(search_kwargs=settings, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: min(1.0, max(0.0, cosine))

    def _closest(
        self,
        vector: Any,
        k: int,
        where: dict[str, Any] | None,
        *,
        distinct: bool = False,
        score_threshold: float | None = None,
        fetch_k: int | None = None,
        sac_metadata: bool = False,
    ) -> list[tuple[Document, float]]:
        import numpy as np

        vector = np.asarray(vector, np.float32)
        limits: dict[str, Any] = {"where": _checked(where), "distinct": distinct, "min_score": score_threshold}
        return self._documents(self.rag.newest().search(vector, None, k, mode="dense", **limits), where, sac_metadata)

    def _documents(
        self, hits: Sequence[Hit], where: dict[str, Any] | None, sac_metadata: bool = False
    ) -> list[tuple[Document, float]]:
        from sac_rag.library.joined import owners_of

        rag = self.rag
        owners = owners_of(rag.library, [h.passage.document for h in hits], _checked(where))
        found = []
        for hit in hits:
            if (p := hit.passage).document in owners:
                memory = _memory(rag, p.id, p.text)  # a ChatSac knows the text again, with these keys or without
                document = stored(owners[p.document], p.text, memory if sac_metadata else {})
                found.append((document, float(hit.dense or 0.0)))
        return found

    # -- making ------------------------------------------------------------------------------------------

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any) -> Self:
        """A store with these documents; see `from_texts`."""
        store = cls._made(embedding, kwargs)
        store.add_documents(documents, **kwargs)
        return store

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Self:
        return await asyncio.to_thread(lambda: cls.from_documents(documents, embedding, **kwargs))

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Self:
        return await asyncio.to_thread(lambda: cls.from_texts(texts, embedding, metadatas, **kwargs))

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts. embedding: None or a SacEmbeddings: a library searches by its own embedder. rag,
        library, config, wait: as of SacVectorStore.
        """
        store = cls._made(embedding, kwargs)
        store.add_texts(texts, metadatas, ids=ids, **kwargs)
        return store

    @classmethod
    def _made(cls, embedding: Embeddings | None, settings: dict[str, Any]) -> Self:
        """An empty store; its own settings are taken out of `settings`."""
        _refuse(cls.__name__, settings, ("library", "rag", "config", "wait", "ids", "batch_size"))
        own = {name: settings.pop(name) for name in ("rag", "library", "config", "wait") if name in settings}
        if embedding is not None and not isinstance(embedding, SacEmbeddings):
            raise ConfigError(
                f"embedding is a {type(embedding).__name__}, but a library searches by its own embedder: give None, or "
                "config=IndexConfig(embedder=…) to choose it"
            )
        if embedding is not None and embedding.model is not None and own.get("rag") is None:
            from sac_rag.config import IndexConfig

            own["config"] = dataclasses.replace(own.get("config") or IndexConfig(), embedder=embedding.model)
        return cls(**own)


_SEARCH = ("filter", "score_threshold", "distinct", "sac_metadata", "fetch_k")


def _refuse(what: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse arguments of other stores by name: one that is passed over would change what is found, or removed."""
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"{what} takes no {unknown[0]!r}; it takes {', '.join(known)}")


def _names(ids: Sequence[Any] | str) -> list[str | None]:
    """Ids as texts; one text is one id."""
    return [i if i is None else str(i) for i in ([ids] if isinstance(ids, str) else ids)]


def _checked(where: Any) -> dict[str, Any] | None:
    if where is not None and not isinstance(where, dict):
        raise ConfigError(f"filter is a {type(where).__name__}; give {{key: value or list of values}}")
    return where


_memory = sac_metadata  # `sac_metadata` is also the name of a search's switch
