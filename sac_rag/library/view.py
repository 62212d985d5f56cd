"""One generation of a library as a reader sees it: its catalog, its mapped segments, its two search indexes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sac_rag.errors import LibraryCorrupt, MemoryInvalid
from sac_rag.library import folder as files
from sac_rag.library import lexical_file
from sac_rag.library.catalog import Catalog, Head
from sac_rag.library.filters import DOCUMENT, fitting
from sac_rag.library.segments import Segment

if TYPE_CHECKING:
    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.codecs import Codec
    from sac_rag.library.lexical import LexicalIndex
    from sac_rag.library.vectors import VectorIndex

_ABOUT = "d.uri, d.meta, p.meta FROM passages p JOIN documents d ON d.key = p.document"


class View:
    """Immutable. Indexes are made at first use, once, whichever thread comes first."""

    def __init__(
        self,
        folder: Path,
        head: Head,
        catalog: Catalog,
        segments: dict[int, Segment],
        *,
        faiss: bytes | None = None,
        vectors: VectorIndex | None = None,
        stale: bool = False,
    ) -> None:
        self.folder, self.head, self.catalog, self.segments = folder, head, catalog, segments
        self.stale = stale
        """Whether the FAISS file on disk was missing or damaged and had to be rebuilt."""
        self._faiss, self._vectors = faiss, vectors
        self._lexical: LexicalIndex | None = None
        self._codec: Codec | None = None
        self._metas: list[tuple[dict[str, Any], list[int]]] | None = None
        """Metadata, and the row keys of the passages that have just these."""
        self._lock = threading.RLock()

    @classmethod
    def load(cls, disk: Catalog, folder: Path, previous: View | None = None, live: Catalog | None = None) -> View:
        """Everything that the current generation needs, opened within the read transaction of `disk`.

        Without `live` the catalog is copied into memory. Maps of `previous` are used again: segments never change.
        """
        catalog = live or disk.copy()
        if live:
            disk.check_whole()
        head = catalog.head()
        again = previous.segments if previous and previous.head.library == head.library else {}
        infos = catalog.segments()
        segments = {
            i.number: again[i.number] if i.number in again and again[i.number].info == i else Segment(folder, i)
            for i in infos
        }
        data = read_faiss(folder, head)
        if data is not None or not head.passages:
            return cls(folder, head, catalog, segments, faiss=data)
        return cls(folder, head, catalog, segments, vectors=stored_vectors(disk, head), stale=True)

    def successor(self, head: Head, segments: dict[int, Segment], vectors: VectorIndex | None) -> View:
        """The next generation on the same live catalog; `vectors` None: the dense index did not change."""
        with self._lock:
            if vectors is None:
                view = View(self.folder, head, self.catalog, segments, faiss=self._faiss, vectors=self._vectors)
                view._lexical = self._lexical
                return view
            return View(self.folder, head, self.catalog, segments, vectors=vectors)

    def vectors(self) -> VectorIndex:
        """The dense index."""
        from sac_rag.library.vectors import VectorIndex

        with self._lock:
            if self._vectors is None:
                if self._faiss is None:
                    self._vectors = VectorIndex.build(self.head.dim, [], [])
                else:
                    self._vectors = VectorIndex.parse(self._faiss, self.head.dim, self.head.passages)
                    self._faiss = None
            return self._vectors

    def lexical(self) -> LexicalIndex:
        """The BM25 index, over all passages: as it was kept, or built."""
        from sac_rag.library.lexical import LexicalIndex

        with self._lock:
            if self._lexical is None and lexical_file.is_kept(self.head):
                self._lexical = lexical_file.read(self.folder, self.head)
            if self._lexical is None:
                rows = self.catalog.rows("SELECT key, text FROM passages ORDER BY key")
                self._lexical = LexicalIndex.build([key for key, _ in rows], (text for _, text in rows))
            return self._lexical

    def codec(self) -> Codec:
        from sac_rag.library.codecs import get_codec

        if self._codec is None:
            self._codec = get_codec(self.head.codec)
        return self._codec

    def read(self, ids: Sequence[str]) -> list[AnchorKV]:
        """Memories in the order of `ids`, verified and decoded, on the CPU."""
        from sac_rag.library.codecs import unpack

        keys = self.catalog.require(ids)
        stored = self.catalog.memories(keys)
        for memory in stored.values():
            if memory.slot.segment in self.segments:
                self.segments[memory.slot.segment].prefetch(memory.slot)
        out = []
        for passage_id, key in zip(ids, keys, strict=True):
            try:
                memory = stored[key]
                data = self.segments[memory.slot.segment].read(memory.slot)
                kv = self.codec().decode(unpack(data, json.loads(memory.layout)))
                if (kv.anchors, kv.source_len) != (memory.anchors, memory.source_len):
                    raise LibraryCorrupt(f"{kv.anchors} anchors of {kv.source_len} tokens instead of {memory.anchors}")
            except (LibraryCorrupt, MemoryInvalid, KeyError, json.JSONDecodeError) as e:
                uri = self.catalog.passages_at([key])[key].document
                raise LibraryCorrupt(
                    f"the memory of passage {passage_id} of {uri!r} in {self.folder} is damaged ({e}): restore the "
                    "library, or remove this document and index it again"
                ) from e
            out.append(kv)
        return out

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        """Row keys of passages that fit a filter, which is as in `Library.search`."""
        fits = fitting(where)
        with self._lock:
            if self._metas is None:
                alike: dict[tuple[str, str, str], list[int]] = {}
                for key, *about in self.catalog.rows(f"SELECT p.key, {_ABOUT}"):
                    alike.setdefault(tuple(about), []).append(key)
                self._metas = [(_meta(*about), keys) for about, keys in alike.items()]
            metas = self._metas
        return {key for meta, keys in metas if fits(meta) for key in keys}

    def fits(self, key: int, where: Mapping[str, Any] | None) -> bool:
        """Whether one passage fits a filter."""
        if not where:
            return True
        fits = fitting(where)
        return any(fits(_meta(*about)) for about in self.catalog.rows(f"SELECT {_ABOUT} WHERE p.key = ?", (key,)))


def _meta(uri: str, document: str, passage: str) -> dict[str, Any]:
    """What a passage is filtered by; its own keys go before its document's, and both before the uri."""
    return {"document": uri, **json.loads(document), **json.loads(passage), DOCUMENT: uri}


def read_faiss(folder: Path, head: Head) -> bytes | None:
    """The bytes of the FAISS file if they are the ones the catalog vouches for, else None."""
    if head.faiss is None:
        return None
    with contextlib.suppress(LibraryCorrupt, OSError):
        data = files.read(folder, files.faiss_name(head.faiss))
        if xxhash.xxh3_128_digest(data) == head.faiss_hash:
            return data
    return None


def stored_vectors(disk: Catalog, head: Head) -> VectorIndex:
    """The dense index made again from the catalog, every row verified."""
    import numpy as np

    from sac_rag.library.vectors import VectorIndex

    keys, rows = [], []
    for key, blob, _ in disk.verified("vectors"):
        if len(blob) != 4 * head.dim:
            raise LibraryCorrupt(f"a vector in {disk.where} has {len(blob)} bytes instead of {4 * head.dim}")
        keys.append(key)
        rows.append(np.frombuffer(blob, "<f4"))
    if len(keys) != head.passages:
        raise LibraryCorrupt(f"{disk.where} has {len(keys)} vectors for {head.passages} passages")
    return VectorIndex.build(head.dim, keys, rows)
