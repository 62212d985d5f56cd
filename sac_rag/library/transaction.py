"""What one commit changes, and the order that makes it safe to be killed anywhere.

Segments, then the FAISS file, then the folder's names, then SQLite's COMMIT: until the last, nothing refers to the
new files; after it, everything they need is durable. Files that nobody refers to are removed afterwards. What a
commit costs follows from what it changes: in a large library the catalog notes what the FAISS file lacks instead.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sac_rag.errors import LibraryCorrupt, LibraryError, MemoryInvalid
from sac_rag.foreign import parse_object
from sac_rag.library import folder as files
from sac_rag.library import schema
from sac_rag.library.catalog import Catalog, Head, StoredMemory, chunks, marks
from sac_rag.library.made import MadeMemory, MadeSegment
from sac_rag.library.segments import Segment, SegmentWriter
from sac_rag.library.view import View, stored_vectors
from sac_rag.records import Document, Passage

if TYPE_CHECKING:
    import numpy as np

    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.vectors import VectorIndex

INDEX_AT_ONCE = 4096
"""Up to so many passages the FAISS file is written with every commit that changes it."""
INDEX_LAG = 8
"""In larger libraries the FAISS file is written when one passage in so many is not in it as it is."""
_TEXT = schema.COLUMNS["passages"].index("text")


class Transaction:
    """Made by `Library.transaction`; a failed call other than a refused argument makes the commit refuse too."""

    def __init__(self, folder: Path, view: View, segment_bytes: int) -> None:
        self._folder, self._view, self._cap = folder, view, segment_bytes
        self._catalog = Catalog.connect(folder)
        with files.writing(folder):
            self._catalog.connection.execute("BEGIN IMMEDIATE")
            stored = self._catalog.head()
        if stored != view.head:
            self._catalog.close()
            raise LibraryError(f"{folder} was changed behind this writer's back: open the library again")
        self._head = view.head
        self._generation = self._head.generation
        self._next_key = self._head.next_key
        self._writer: SegmentWriter | None = None
        self._waiting: list[tuple[int, str, int, int]] = []
        """(row key, layout, anchors, source_len) of what lies in the open segment."""
        self._adopted: dict[str, tuple[int, MadeMemory]] = {}
        """Memories that came with finished segments, by passage: (segment, where it lies)."""
        self._added: dict[int, np.ndarray] = {}
        self._removed: set[int] = set()
        self._documents = self._passages = 0
        """How many more there are than before."""
        self._emptied: set[int] = set()
        """Segments that lost a memory, or came in: they may hold none."""
        self._touched = self._failed = False
        self._next: View | None = None
        self.rebuild = view.stale
        """Whether the FAISS file is written from the catalog instead of from the file before."""
        self.dense: str | None = None
        """What kind of index it then holds, of `vectors.KINDS`; None: the one before."""

    def adopt(self, made: MadeSegment) -> None:
        """Take in a finished segment of this library's folder; `put` then needs no memories for its passages.

        Raises LibraryError when it is not there as it was made.
        """
        if not files.is_made(made.name):
            raise LibraryError(f"{made.name!r} is no name of a made segment")
        number = self._generation + 1
        with self._changing():
            if os.stat(self._folder / made.name, follow_symlinks=False).st_size != made.size:
                raise LibraryError(f"{self._folder / made.name} has not the {made.size} bytes that were made")
            os.rename(self._folder / made.name, self._folder / files.segment_name(number))
            self._generation = number
            self._emptied.add(number)
            self._catalog.write("segments", [(number, made.size, made.start, bytes.fromhex(made.header))])
        self._adopted |= {m.passage: (number, m) for m in made.memories}

    @property
    def unindexed(self) -> int:
        """Passages that changed since the FAISS file was written, before this transaction."""
        count: int = self._catalog.rows("SELECT count(*) FROM unindexed")[0][0]
        return count

    def put(
        self,
        document: Document,
        passages: Sequence[Passage],
        memories: Mapping[str, AnchorKV],
        vectors: Mapping[str, np.ndarray],
        *,
        content_hash: str | None = None,
        keep: Collection[str] = (),
    ) -> None:
        """Make `passages` the whole passage list of `document`, new or known.

        memories: by passage id, for ids that the document does not have yet and no adopted segment holds. vectors: for
        these, and for any other that is to have another one; shape (dim,), any length. Passages already stored keep
        their memory and text; place, heading and metadata are updated. Those no longer in the list are removed, but
        for the ids in `keep`, which stay as they are: so a long document is stored in several steps. Raises
        LibraryError or MemoryInvalid before anything changes when an argument does not fit, LibraryFull when the disk
        is full.
        """
        from sac_rag.library.vectors import normalise

        _check(document, passages)
        known = self._catalog.rows(
            f"SELECT {', '.join(schema.COLUMNS['documents'])} FROM documents WHERE uri = ?", [document.uri]
        )
        given = {p.id: p for p in passages}
        old = {row[1]: row for row in self._stored(known[0][0])} if known else {}
        for passage_id, row in old.items():
            if passage_id in given and row[_TEXT] != given[passage_id].text:
                raise LibraryError(f"passage {passage_id!r} of {document.uri!r} is stored with another text")
        new = [i for i in given if i not in old]
        self._check_given(document.uri, given, new, memories, vectors)
        units = {i: normalise(vector, self._head.dim, f"passage {i}") for i, vector in vectors.items()}
        owner, metas = known[0][0] if known else self._key(), [_json(p.meta) for p in passages]
        described = (owner, document.uri, document.media_type, _json(document.meta), content_hash)
        with self._changing():
            self._documents += not known
            if [described] != known:
                self._catalog.write("documents", [described])
            self._forget([row[0] for i, row in old.items() if i not in given and i not in keep])
            for p, meta in zip(passages, metas, strict=True):
                key = old[p.id][0] if p.id in old else self._key()
                columns = (key, p.id, owner, p.ordinal, p.text, p.start, p.end, p.heading, p.tokens, meta)
                if old.get(p.id) != columns:
                    self._catalog.write("passages", [columns])
                if p.id in units:
                    self._catalog.write("vectors", [(key, units[p.id].astype("<f4").tobytes())])
                    self._added[key] = units[p.id]
                if p.id not in old:
                    self._passages += 1
                    self._remember(key, p.id, memories)

    def _stored(self, document: int) -> list[tuple[Any, ...]]:
        columns = ", ".join(schema.COLUMNS["passages"])
        return self._catalog.rows(f"SELECT {columns} FROM passages WHERE document = ?", (document,))

    def _check_given(
        self,
        uri: str,
        passages: Mapping[str, Passage],
        new: Sequence[str],
        memories: Mapping[str, AnchorKV],
        vectors: Mapping[str, np.ndarray],
    ) -> None:
        if taken := self._catalog.keys(new):
            raise LibraryError(f"passage {next(iter(taken))!r} is already stored under another document")
        for kind, given, made in (("memory", memories, self._adopted), ("vector", vectors, {})):
            for passage_id in new:
                if passage_id not in given and passage_id not in made:
                    raise LibraryError(f"new passage {passage_id!r} of {uri!r} comes without a {kind}")
            if strange := set(given) - set(passages):
                raise LibraryError(f"a {kind} is given for {min(strange)!r}, which is no passage of {uri!r}")
        for passage_id in set(new) & set(memories):
            try:
                memories[passage_id].validate()
            except MemoryInvalid as e:
                raise MemoryInvalid(f"passage {passage_id} of {uri!r}: {e}") from e

    def remove_document(self, uri: str) -> int:
        """Remove a document with its passages; returns how many passages went, 0 also when it is not stored."""
        rows = self._catalog.rows("SELECT key FROM documents WHERE uri = ?", (uri,))
        if not rows:
            return 0
        keys = [key for (key,) in self._catalog.rows("SELECT key FROM passages WHERE document = ?", rows[0])]
        with self._changing():
            self._forget(keys)
            self._catalog.execute("DELETE FROM documents WHERE key = ?", rows[0])
            self._documents -= 1
        return len(keys)

    def move(self, segments: Sequence[int]) -> int:
        """Copy the memories of these segments into new ones, bytes verified and unchanged; returns how many."""
        rows = self._catalog.rows(
            "SELECT p.key FROM memories m JOIN passages p ON p.key = m.passage "
            f"WHERE m.segment IN ({', '.join(map(str, segments))}) ORDER BY p.document, p.ordinal"
        )
        from sac_rag.library.codecs import layout_of

        keys = [key for (key,) in rows]
        with self._changing():
            self._emptied.update(segments)
            stored, names = self._catalog.memories(keys), self._catalog.ids(keys)
            for key in keys:
                memory = stored[key]
                if why := self._view.missing.get(memory.slot.segment):
                    raise LibraryCorrupt(f"{why}; `sac repair` makes its memories again")
                data = self._view.segments[memory.slot.segment].read(memory.slot)
                self._store(key, names[key], memory.layout, layout_of(data, memory.layout), [data], memory)
        return len(keys)

    def recode(self, codec: str, state: bytes | None = None, done: Callable[[int], None] = lambda n: None) -> int:
        """Store all memories anew, by another codec (of this state, if it is fitted); returns how many.

        done: called with the number stored so far. Raises LibraryError when they are stored so already, and where they
        are stored by a fitted codec: what it left out is gone, and memories would no longer be what the model makes.
        """
        from sac_rag.library.codecs import get_codec, is_fitted, pack

        if codec == self._head.codec:
            raise LibraryError(f"{self._folder} stores its memories as {codec} already")
        if is_fitted(self._head.codec):
            raise LibraryError(
                f"{self._folder} stores its memories as {self._head.codec}, and what that left out is not there to be "
                f"stored as {codec}: index the documents again with --codec {codec}, into a new library"
            )
        made, state = get_codec(codec, state), state if is_fitted(codec) else None
        keys = [key for (key,) in self._catalog.rows("SELECT key FROM passages ORDER BY document, ordinal")]
        with self._changing():
            self._emptied.update(self._view.segments)
            for count, (key, name) in enumerate(self._catalog.ids(keys).items(), 1):
                (memory,) = self._view.read([name])
                layout, data = pack(made.encode(memory))
                self._store(key, name, json.dumps(layout, separators=(",", ":")), layout, data, memory)
                done(count)
            self._catalog.set_codec_state(state)
            self._head = replace(self._head, codec=codec)
        return len(keys)

    def prepare(self) -> None:
        """Write and sync all files that the commit will refer to. Raises LibraryFull, LibraryError."""
        if self._failed:
            raise LibraryError("this transaction failed before; nothing was stored, repeat it")
        if not self._touched and not self.rebuild:
            return
        with files.writing(self._folder):
            self._finish_segment()
            generation = max(self._generation, self._head.generation + 1)
            head = self._counted(replace(self._head, generation=generation, next_key=self._next_key))
            vectors: VectorIndex | None = None
            if self._added or self._removed or self.rebuild:
                head, vectors = self._index(head)
            files.sync(self._folder)
            self._catalog.write("head", [head.row()])
            kept = {i.number: i for i in self._catalog.segments()}
            # Mapped before the commit: what comes after it must not fail.
            segments = {
                n: self._view.segments[n] if n in self._view.segments else Segment(self._folder, i)
                for n, i in kept.items()
                if n not in self._view.missing
            }
            self._next = self._view.successor(head, segments, vectors)

    def commit(self) -> View | None:
        """Make what was prepared current; the new view, or None when nothing had changed. Raises as `prepare` does."""
        if self._next:
            with files.writing(self._folder):
                self._catalog.connection.execute("COMMIT")
        self.close()
        return self._next

    def close(self) -> None:
        """End it, rolling back what was not committed."""
        if self._writer:
            self._writer.abort()
        with contextlib.suppress(Exception):
            if self._catalog.connection.in_transaction:
                self._catalog.connection.execute("ROLLBACK")
        self._catalog.close()

    def _counted(self, head: Head) -> Head:
        """`head` with the counts of what is stored now; segments without a memory go."""
        empty = "DELETE FROM segments WHERE number = ? AND NOT EXISTS (SELECT 1 FROM memories WHERE segment = number)"
        for number in sorted(self._emptied):
            self._catalog.execute(empty, (number,))
        documents, passages = head.documents + self._documents, head.passages + self._passages
        segments = self._catalog.rows("SELECT count(*) FROM segments")[0][0]
        return replace(head, documents=documents, passages=passages, segments=segments)

    def _index(self, head: Head) -> tuple[Head, VectorIndex]:
        """The dense index of this commit: its file written anew, or what it lacks noted, where that is little."""
        changed = self._added.keys() | self._removed
        head = replace(head, changed=head.generation)
        few = self.unindexed + len(changed) <= head.passages // INDEX_LAG
        if not self.rebuild and head.faiss is not None and head.passages > INDEX_AT_ONCE and few:
            self._catalog.write("unindexed", ((key, head.generation) for key in sorted(changed)))
            return head, self._view.vectors().changed(self._removed, self._added)
        if self.rebuild:
            kind = self._kind(head.passages)
            vectors = stored_vectors(self._catalog, head, kind=kind, folder=self._folder)
        else:
            vectors = self._view.vectors().changed(self._removed, self._added).whole()
        data = vectors.serialize()
        files.write_durable(self._folder, files.faiss_name(head.generation), [data])
        self._catalog.execute("DELETE FROM unindexed")
        return replace(head, faiss=head.generation, faiss_hash=xxhash.xxh3_128_digest(data)), vectors

    def _kind(self, count: int) -> str:
        """What the dense index becomes that is made anew: as it was, unless another was asked for."""
        from sac_rag.library.vectors import LEAST_APPROXIMATE, kind_of

        if self.dense is not None:
            return kind_of(self.dense, count)
        return self._view.vectors().kind if count >= LEAST_APPROXIMATE else "exact"

    def _key(self) -> int:
        self._next_key += 1
        return self._next_key - 1

    def _remember(self, key: int, passage_id: str, memories: Mapping[str, AnchorKV]) -> None:
        """Store the memory of a new passage: one that is given, else the adopted one."""
        from sac_rag.library.codecs import pack

        memory = memories.get(passage_id)
        if memory is None:
            number, m = self._adopted[passage_id]
            row = (key, number, m.offset, m.length, m.layout, bytes.fromhex(m.xxh3), m.anchors, m.source_len)
            self._catalog.write("memories", [row])
            return
        try:
            layout, data = pack(self._view.codec().encode(memory))
        except MemoryInvalid as e:
            raise MemoryInvalid(f"passage {passage_id}: {e}") from e
        self._store(key, passage_id, json.dumps(layout, separators=(",", ":")), layout, data, memory)

    def _store(
        self,
        key: int,
        name: str,
        text: str,
        layout: Sequence[Any],
        data: Sequence[bytes | bytearray],
        memory: AnchorKV | StoredMemory,
    ) -> None:
        if self._writer and not self._writer.has_room(sum(map(len, data))):
            self._finish_segment()
        if not self._writer:
            self._generation += 1
            self._writer = SegmentWriter(self._folder, self._generation, self._cap)
        self._writer.add(name, layout, data)
        self._waiting.append((key, text, memory.anchors, memory.source_len))

    def _finish_segment(self) -> None:
        if not self._writer:
            return
        info, slots = self._writer.finish()
        self._writer = None
        self._emptied.add(info.number)
        self._catalog.write("segments", [(info.number, info.size, info.start, info.header)])
        for (key, layout, anchors, source_len), s in zip(self._waiting, slots, strict=True):
            # A passage put and removed within one transaction leaves dead bytes, nothing else.
            if self._catalog.rows("SELECT 1 FROM passages WHERE key = ?", (key,)):
                row = (key, s.segment, s.offset, s.length, layout, s.xxh3, anchors, source_len)
                self._catalog.write("memories", [row])
        self._waiting.clear()

    def _forget(self, keys: Sequence[int]) -> None:
        self._passages -= len(keys)
        for part in chunks(keys):
            lost = f"SELECT DISTINCT segment FROM memories WHERE passage IN ({marks(part)})"
            self._emptied.update(number for (number,) in self._catalog.rows(lost, part))
            for table, column in (("memories", "passage"), ("vectors", "passage"), ("passages", "key")):
                self._catalog.execute(f"DELETE FROM {table} WHERE {column} IN ({marks(part)})", part)
        for key in keys:
            self._added.pop(key, None)
            if key < self._head.next_key:  # else the index never had it
                self._removed.add(key)

    @contextlib.contextmanager
    def _changing(self) -> Any:
        self._touched = True
        try:
            with files.writing(self._folder):
                yield
        except BaseException:
            self._failed = True
            raise


def _check(document: Document, passages: Sequence[Passage]) -> None:
    seen: set[str] = set()
    for p in passages:
        if p.document != document.uri:
            raise LibraryError(f"passage {p.id!r} belongs to {p.document!r}, not to {document.uri!r}")
        if not p.id or len(p.id) > 256 or p.id in seen:
            raise LibraryError(f"passage ids of {document.uri!r} must be distinct and 1..256 characters: {p.id[:80]!r}")
        seen.add(p.id)
    for what, text in (("uri", document.uri), *(("passage", s) for p in passages for s in (p.id, p.text, p.heading))):
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise LibraryError(f"a {what} of {document.uri!r} is no valid Unicode text: {e}") from e


def _json(meta: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(dict(meta), allow_nan=False, separators=(",", ":"))
        parse_object(text)  # what is too deep to be read again is not stored
        return text
    except (TypeError, ValueError, RecursionError) as e:
        raise LibraryError(f"metadata must hold JSON values only: {e}") from e
