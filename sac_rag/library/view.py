"""One generation of a library as a reader sees it: its catalog, its mapped segments, its two search indexes."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from sac_rag.errors import LibraryCorrupt, MemoryDamaged, MemoryInvalid
from sac_rag.foreign import parse_json
from sac_rag.library import folder as files
from sac_rag.library import lexical_file, schema
from sac_rag.library.catalog import Catalog, Head, StoredMemory, chunks, marks
from sac_rag.library.filters import fitting
from sac_rag.library.segments import Segment

if TYPE_CHECKING:
    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.codecs import Codec
    from sac_rag.library.lexical import LexicalIndex
    from sac_rag.library.vectors import Stored, VectorIndex

_Task = TypeVar("_Task")
_Done = TypeVar("_Done")
LEAST = 2
"""Memories that a thread reads, at the least."""
_FAISS_HEAD = 4096
"""More than a FAISS file has beside vectors and keys."""


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
        late: Mapping[int, bytes | None] | None = None,
        vectors: VectorIndex | None = None,
        stale: bool = False,
    ) -> None:
        """faiss: the bytes of the FAISS file. late: what changed since, by row key: a stored vector, or None for a
        passage that is gone."""
        self.folder, self.head, self.catalog, self.segments = folder, head, catalog, segments
        self.stale = stale
        """Whether the FAISS file on disk was missing or damaged and had to be rebuilt."""
        self.missing: dict[int, str] = {}
        """Segments that cannot be read, and why."""
        self.problems: list[str] = []
        """What of the catalog could not be read, by document; such rows are left out."""
        self.mute: set[int] = set()
        """Row keys of passages whose memory cannot be read, as far as that is known: never found by a search."""
        self._faiss, self._late, self._vectors = faiss, dict(late or {}), vectors
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
        catalog, problems = (live, []) if live else _copied(disk)
        if live:
            disk.check_whole()
        head = catalog.head()
        again = previous.segments if previous and previous.head.library == head.library else {}
        segments, missing = {}, {}
        for i in catalog.segments():
            try:
                old = again.get(i.number)
                segments[i.number] = old if old and old.info == i else Segment(folder, i)
            except LibraryCorrupt as e:
                missing[i.number] = str(e)
        data = read_faiss(folder, head)
        if data is not None or (head.faiss is None and not head.passages):
            late = late_vectors(disk, head, catalog.unindexed())
            view = cls(folder, head, catalog, segments, faiss=data, late=late)
        else:
            view = cls(folder, head, catalog, segments, vectors=stored_vectors(disk, head, problems), stale=True)
        view.problems = problems
        view._note(missing)
        return view

    def _note(self, missing: dict[int, str]) -> None:
        """Segments are missing: passages in them, and those without a memory, are never found."""
        self.missing = missing
        for number in missing:
            self.mute.update(k for (k,) in self.catalog.rows("SELECT passage FROM memories WHERE segment=?", (number,)))
        if self.problems:
            bare = "SELECT key FROM passages WHERE key NOT IN (SELECT passage FROM memories)"
            self.mute.update(key for (key,) in self.catalog.rows(bare))

    def damaged(self) -> dict[str, int]:
        """Documents, by uri, of which passages have no readable memory, as far as that is known; how many."""
        found: Counter[str] = Counter()
        for part in chunks(sorted(self.mute)):
            query = (
                f"SELECT d.uri FROM passages p JOIN documents d ON d.key = p.document WHERE p.key IN ({marks(part)})"
            )
            found.update(uri for (uri,) in self.catalog.rows(query, part))
        return dict(found)

    def successor(self, head: Head, segments: dict[int, Segment], vectors: VectorIndex | None) -> View:
        """The next generation on the same live catalog; `vectors` None: the dense index did not change."""
        with self._lock:
            if vectors is None:
                view = View(self.folder, head, self.catalog, segments, faiss=self._faiss, late=self._late)
                view._vectors, view._lexical = self._vectors, self._lexical
            else:
                view = View(self.folder, head, self.catalog, segments, vectors=vectors)
            view._codec = self._codec if head.codec == self.head.codec else None
            view.mute = self.mute
            view._note({number: why for number, why in self.missing.items() if number not in segments})
            return view

    def vectors(self) -> VectorIndex:
        """The dense index."""
        with self._lock:
            if self._vectors is None:
                self._vectors = self._indexed()
                self._faiss, self._late = None, {}
            return self._vectors

    def _indexed(self) -> VectorIndex:
        import numpy as np

        from sac_rag.library.vectors import VectorIndex

        dim = self.head.dim
        if self._faiss is None:
            base = VectorIndex.build(dim, [], [])
        else:
            base = VectorIndex.parse(self._faiss, dim, stored=stored_rows(self.folder))
        late = {key: np.frombuffer(blob, "<f4") for key, blob in self._late.items() if blob is not None}
        return base.changed(self._late.keys(), late) if self._late else base

    def lexical(self) -> LexicalIndex:
        """The BM25 index, over all passages: as it was kept, or built."""
        with self._lock:
            if self._lexical is None and lexical_file.is_kept(self.head):
                self._lexical = lexical_file.read(self.folder, self.head, self.catalog.all_keys())
            if self._lexical is None:
                self._lexical = self.built_lexical()
            return self._lexical

    def built_lexical(self) -> LexicalIndex:
        """The BM25 index as the text of the catalog makes it."""
        from sac_rag.library.lexical import LexicalIndex

        rows = self.catalog.rows("SELECT key, text FROM passages ORDER BY key")
        return LexicalIndex.build([key for key, _ in rows], (text for _, text in rows))

    def forget_lexical(self) -> None:
        """Let the BM25 index be made anew, from text, at its next use."""
        with self._lock:
            lexical_file.forget(self.folder, self.head)
            self._lexical = None

    def codec(self) -> Codec:
        from sac_rag.library.codecs import get_codec

        if self._codec is None:
            self._codec = get_codec(self.head.codec, self.catalog.codec_state())
        return self._codec

    def read(self, ids: Sequence[str]) -> list[AnchorKV]:
        """Memories in the order of `ids`, verified and decoded, on the CPU."""
        keys = self.catalog.require(ids)
        stored = self.catalog.memories(keys)
        for memory in stored.values():
            if memory.slot.segment in self.segments:
                self.segments[memory.slot.segment].prefetch(memory.slot)
        codec = self.codec()
        parsed = list(_side_by_side(functools.partial(self._parsed, codec), [stored.get(key) for key in keys]))
        problems = []
        for passage_id, key, found in zip(ids, keys, parsed, strict=True):
            if isinstance(found, Exception):
                uri = self.catalog.passages_at([key])[key].document
                problems.append((f"the memory of passage {passage_id} of {uri!r} in {self.folder} is damaged", found))
                self.mute.add(key)
        if problems:
            message, cause = problems[0]
            raise MemoryDamaged(
                f"{message} ({cause}): `sac repair` makes it again from the text, or remove this document and index it "
                "again"
            ) from cause
        return parsed

    def _parsed(self, codec: Codec, memory: StoredMemory | None) -> Any:
        """What a codec makes of stored bytes, or why it does not."""
        from sac_rag.library.codecs import unpack

        try:
            if memory is None:
                raise LibraryCorrupt("it is not in the catalog")
            if memory.slot.segment in self.missing:
                raise LibraryCorrupt(self.missing[memory.slot.segment])
            data = self.segments[memory.slot.segment].read(memory.slot)
            found = codec.decode(unpack(data, parse_json(memory.layout)))
            if (found.anchors, found.source_len) != (memory.anchors, memory.source_len):
                raise LibraryCorrupt(
                    f"{found.anchors} anchors of {found.source_len} tokens instead of {memory.anchors}"
                )
            return found
        except (LibraryCorrupt, MemoryInvalid, KeyError, ValueError) as error:
            return error

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        """Row keys of passages that fit a filter, which is as in `Library.search`."""
        fits = fitting(where)
        with self._lock:
            if self._metas is None:
                self._metas = self.catalog.metas()
            metas = self._metas
        return {key for meta, keys in metas if fits(meta) for key in keys}

    def fits(self, key: int, where: Mapping[str, Any] | None) -> bool:
        """Whether one passage fits a filter."""
        if not where:
            return True
        fits = fitting(where)
        return any(fits(meta) for meta, _ in self.catalog.metas(key))

    def audible(self) -> set[int] | None:
        """Row keys of passages that can be read; None where no damage is known, for all."""
        if not (self.mute or self.problems):
            return None
        return {key for (key,) in self.catalog.rows("SELECT key FROM passages")} - self.mute


def _side_by_side(work: Callable[[_Task], _Done], tasks: Sequence[_Task]) -> Iterable[_Done]:
    """A function of each task, in their order, by as many threads as torch has: most of reading leaves Python alone."""
    import torch

    threads = min(torch.get_num_threads(), len(tasks) // LEAST)
    if threads < 2:
        return map(work, tasks)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, tasks))


def read_faiss(folder: Path, head: Head) -> bytes | None:
    """The bytes of the FAISS file if they are the ones the catalog vouches for, else None."""
    if head.faiss is None:
        return None
    with contextlib.suppress(LibraryCorrupt, OSError):
        most = _FAISS_HEAD + head.passages * (4 * head.dim + 8)
        data = files.read(folder, files.faiss_name(head.faiss), most)
        if xxhash.xxh3_128_digest(data) == head.faiss_hash:
            return data
    return None


def late_vectors(disk: Catalog, head: Head, keys: Sequence[int]) -> dict[int, bytes | None]:
    """Vectors of these row keys, verified; None for those that are not there any more."""
    found: dict[int, bytes | None] = dict.fromkeys(keys)
    for part in chunks(keys):
        query = f"SELECT passage, vector, sum FROM vectors WHERE passage IN ({marks(part)})"
        for key, blob, checksum in disk.rows(query, part):
            if schema.row_sum("vectors", (key, blob)) != checksum or len(blob) != 4 * head.dim:
                raise LibraryCorrupt(f"the vector of row {key} in {disk.where} fails its checksum: restore the library")
            found[key] = blob
    return found


def stored_rows(folder: Path) -> Stored:
    """What gives an approximate index the vectors that are stored: those of now, each verified."""
    import numpy as np

    def rows(keys: Sequence[int]) -> dict[int, np.ndarray]:
        with Catalog.read(folder) as disk:
            found = late_vectors(disk, disk.head(), keys)
        return {key: np.frombuffer(blob, "<f4") for key, blob in found.items() if blob is not None}

    return rows


def stored_vectors(
    disk: Catalog, head: Head, problems: Sequence[str] = (), kind: str = "exact", folder: Path | None = None
) -> VectorIndex:
    """The dense index made again from the catalog, every row verified. kind: "exact", or "approximate", which then asks
    the catalog in `folder` for vectors. problems: of a catalog that is known to be
    damaged, rows that cannot be read are left out; else they are LibraryCorrupt."""
    import numpy as np

    from sac_rag.library.salvage import salvaged_rows
    from sac_rag.library.vectors import VectorIndex

    keys, rows = [], []
    for key, blob, *_ in salvaged_rows(disk, "vectors", head) if problems else disk.verified("vectors"):
        if len(blob) != 4 * head.dim:
            raise LibraryCorrupt(f"a vector in {disk.where} has {len(blob)} bytes instead of {4 * head.dim}")
        keys.append(key)
        rows.append(np.frombuffer(blob, "<f4"))
    if len(keys) != head.passages and not problems:
        raise LibraryCorrupt(f"{disk.where} has {len(keys)} vectors for {head.passages} passages")
    return VectorIndex.build(head.dim, keys, rows, kind, stored_rows(folder) if folder else None)


def _copied(disk: Catalog) -> tuple[Catalog, list[str]]:
    """The catalog in memory; of a damaged one, what is sound, and what is wrong with it."""
    from sac_rag.library import salvage

    try:
        return disk.copy(), []
    except (LibraryCorrupt, sqlite3.DatabaseError):
        return salvage.copy(disk)
