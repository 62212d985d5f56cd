"""The catalog: one SQLite file, the truth about passages, text, metadata, vectors and where KV bytes lie.

`Catalog.connect` works on the file, for a writer or for one read transaction; `copy` gives a reader its own snapshot
in memory, so that readers never make a writer wait. Values reach SQL as bound parameters only.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryNotFound, PassageGone
from sac_rag.library import folder as files
from sac_rag.library import schema
from sac_rag.library.connection import connect, reading
from sac_rag.library.segments import SegmentInfo, Slot
from sac_rag.records import Passage

STALE = "_stale"
"""Metadata of a document whose newer version could not be read: why."""
_CHUNK = 500
_PASSAGES = (
    "SELECT p.key, p.id, d.uri, p.ordinal, p.text, p.start, p.stop, p.heading, p.tokens, p.meta "
    "FROM passages p JOIN documents d ON d.key = p.document"
)


@dataclass(frozen=True)
class Head:
    """The one row that says which generation is current and what the library was made with."""

    library: str
    generation: int
    next_key: int
    codec: str
    dim: int
    fingerprint: dict[str, Any]
    faiss: int | None
    """Generation in the name of the FAISS file; None while there is none."""
    faiss_hash: bytes | None
    documents: int
    passages: int
    segments: int

    def row(self) -> tuple[Any, ...]:
        text = json.dumps(self.fingerprint, sort_keys=True, allow_nan=False)
        return (
            *(1, self.library, self.generation, self.next_key, self.codec, self.dim, text),
            *(self.faiss, self.faiss_hash, self.documents, self.passages, self.segments),
        )


@dataclass(frozen=True)
class StoredDocument:
    """What a library keeps of a document besides its passages."""

    uri: str
    media_type: str
    meta: dict[str, Any]
    content_hash: str | None
    """What the indexer passed to `put`, to skip unchanged documents."""
    passages: int
    source_tokens: int

    @property
    def stale(self) -> str | None:
        """Why a newer version could not be read, so that this one still answers; None when it is the newest."""
        reason = self.meta.get(STALE)
        return reason if isinstance(reason, str) else None


@dataclass(frozen=True)
class StoredMemory:
    """Where a passage's memory lies and what it is."""

    slot: Slot
    layout: str
    """JSON: (tensor, dtype, shape) in byte order."""
    anchors: int
    source_len: int


class Catalog:
    """A connection with typed rows. Safe to share between threads: every call holds a lock and ends its statement."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self.connection, self.folder, self.where = connection, folder, str(folder)
        self._lock = threading.RLock()

    def __del__(self) -> None:
        if connection := self.__dict__.get("connection"):  # not of one that was never made whole
            connection.close()

    @classmethod
    def create(cls, folder: Path, codec: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Write an empty catalog under a temporary name and rename it: it exists whole or not at all."""
        path = folder / files.NEW_CATALOG
        for leftover in (path, folder / f"{files.NEW_CATALOG}-journal"):
            leftover.unlink(missing_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        head = Head(uuid.uuid4().hex, 0, 1, codec, dim, dict(fingerprint), None, None, 0, 0, 0)
        catalog = cls(connect(path), folder)
        try:
            catalog.connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
            catalog.connection.execute("BEGIN IMMEDIATE")
            schema.migrate(catalog.connection, [])
            catalog.write("head", [head.row()])
            catalog.connection.execute("COMMIT")
        finally:
            catalog.close()
        os.rename(path, folder / files.CATALOG)
        files.sync(folder)

    @classmethod
    def connect(cls, folder: Path) -> Catalog:
        """Open the file. Raises LibraryNotFound when there is none, LibraryError when it cannot be looked for; parse
        errors come at the first use.
        """
        path = folder / files.CATALOG
        try:
            files.check_regular(path)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise LibraryNotFound(
                f"no library at {folder}: check the path, or make one with `sac index` or Library.create"
            ) from e
        except OSError as e:
            raise LibraryError(
                f"cannot look for {path}: {e.strerror}; check the path and the permissions of its folders"
            ) from e
        with reading(folder):
            return cls(connect(path), folder)

    @classmethod
    @contextlib.contextmanager
    def read(cls, folder: Path) -> Iterator[Catalog]:
        """The file within one read transaction: no commit can happen, and no file vanish, until it ends."""
        catalog = cls.connect(folder)
        try:
            with reading(folder):
                catalog.connection.execute("BEGIN")
                yield catalog
        finally:
            catalog.close()

    def close(self) -> None:
        with self._lock:
            self.connection.close()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query. Raises LibraryError on a closed library, LibraryCorrupt on a damaged one."""
        with self._lock, reading(self.folder):
            return self.connection.execute(sql, parameters).fetchall()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """Change something; SQLite's errors come as they are."""
        with self._lock:
            self.connection.execute(sql, parameters)

    def verified(self, table: str) -> Iterator[tuple[Any, ...]]:
        """All rows of a table with their `sum`; LibraryCorrupt at the first whose checksum is wrong."""
        columns = schema.COLUMNS[table]
        for row in self.connection.execute(f"SELECT {', '.join(columns)}, sum FROM {table} ORDER BY {columns[0]}"):
            if schema.row_sum(table, row[:-1]) != row[-1]:
                raise LibraryCorrupt(
                    f"row {row[0]} of {table} in {self.where} fails its checksum: restore the library or index again"
                )
            yield row

    def write(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows, or replace those with the same primary key; each gets its checksum."""
        columns = schema.COLUMNS[table]
        updates = ", ".join(f"{c}=excluded.{c}" for c in (*columns[1:], "sum"))
        marks = ", ".join("?" * (len(columns) + 1))
        sql = f"INSERT INTO {table} VALUES ({marks}) ON CONFLICT ({columns[0]}) DO UPDATE SET {updates}"
        with self._lock:
            self.connection.executemany(sql, ((*row, schema.row_sum(table, row)) for row in rows))

    def head(self) -> Head:
        rows = list(self.verified("head"))
        if len(rows) != 1:
            raise LibraryCorrupt(f"{self.where} has {len(rows)} head rows instead of one: restore it or index again")
        values = list(rows[0][1:-1])
        values[5] = json.loads(values[5])
        return Head(*values)

    def counted(self, head: Head) -> Head:
        """`head` with the counts as they are in the tables now."""
        tables = ("documents", "passages", "segments")
        return replace(head, **{t: self.rows(f"SELECT count(*) FROM {t}")[0][0] for t in tables})

    def check_format(self) -> list[str]:
        """Names of the applied migrations, after refusing newer formats, foreign files and unexpected tables."""
        connection, pragmas = self.connection, {}
        for name in ("application_id", "journal_mode", "encoding"):
            pragmas[name] = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if pragmas != {"application_id": schema.APPLICATION_ID, "journal_mode": "delete", "encoding": "UTF-8"}:
            raise LibraryCorrupt(f"the catalog in {self.where} is not one of ours or is damaged ({pragmas})")
        done = schema.applied(connection, self.where)
        schema.check_shape(connection, done, self.where)
        return done

    def copy(self) -> Catalog:
        """A verified snapshot in memory, without vectors, brought to the newest format. Call within `read`."""
        done = self.check_format()
        memory = Catalog(connect(None), self.folder)
        try:
            memory.connection.execute("BEGIN")
            schema.migrate(memory.connection, [], upto=len(done))
            for table, columns in schema.COLUMNS.items():
                if table != "vectors":
                    marks = ", ".join("?" * (len(columns) + 1))
                    memory.connection.executemany(f"INSERT INTO {table} VALUES ({marks})", self.verified(table))
            schema.migrate(memory.connection, done)
            memory.connection.execute("COMMIT")
            memory.check_counts()
        except BaseException:
            memory.close()
            raise
        return memory

    def check_whole(self) -> None:
        """Verify every row and SQLite's own structures, in place: what a writer does once before it relies on them."""
        self.check_format()
        for table in schema.COLUMNS:
            for _ in self.verified(table):
                pass
        problems = [row[0] for row in self.connection.execute("PRAGMA integrity_check(5)")]
        problems += [f"{row[0]} refers to a missing {row[2]}" for row in self.rows("PRAGMA foreign_key_check")]
        if problems != ["ok"]:
            raise LibraryCorrupt(f"the catalog in {self.where} is damaged ({'; '.join(problems)}): restore it")
        self.check_counts()

    def check_counts(self) -> None:
        head = self.head()
        now = self.counted(head)
        memories = self.rows("SELECT count(*) FROM memories")[0][0]
        if now != head or memories != head.passages:
            raise LibraryCorrupt(
                f"{self.where} lost rows: {now.documents} documents, {now.passages} passages, {memories} memories and "
                f"{now.segments} segments instead of {head.documents}, {head.passages}, {head.passages} and "
                f"{head.segments}: restore it or index again"
            )

    def segments(self) -> list[SegmentInfo]:
        return [SegmentInfo(*row) for row in self.rows("SELECT number, size, start, header FROM segments ORDER BY 1")]

    def documents(self, uris: Sequence[str] | None = None) -> list[StoredDocument]:
        query = (
            "SELECT d.uri, d.media_type, d.meta, d.content_hash, count(p.key), coalesce(sum(m.source_len), 0) "
            "FROM documents d LEFT JOIN passages p ON p.document = d.key LEFT JOIN memories m ON m.passage = p.key "
        )
        rows: list[tuple[Any, ...]] = []
        if uris is None:
            rows = self.rows(f"{query} GROUP BY d.key")
        for part in chunks(sorted(set(uris or ()))):
            rows += self.rows(f"{query} WHERE d.uri IN ({marks(part)}) GROUP BY d.key", part)
        rows.sort(key=lambda row: row[0])
        return [StoredDocument(uri, kind, json.loads(meta), *rest) for uri, kind, meta, *rest in rows]

    def passages(self, document: str | None = None) -> list[Passage]:
        """Passages of a document, or all, in reading order."""
        condition, parameters = ("", ()) if document is None else ("WHERE d.uri = ?", (document,))
        rows = self.rows(f"{_PASSAGES} {condition} ORDER BY d.uri, p.ordinal, p.key", parameters)
        return [_passage(row) for row in rows]

    def passages_at(self, keys: Sequence[int]) -> dict[int, Passage]:
        """Passages by row key."""
        found = {}
        for part in chunks(keys):
            rows = self.rows(f"{_PASSAGES} WHERE p.key IN ({marks(part)})", part)
            found.update({row[0]: _passage(row) for row in rows})
        return found

    def ids(self, keys: Sequence[int]) -> dict[int, str]:
        """Passage ids by row key."""
        found: dict[int, str] = {}
        for part in chunks(keys):
            found.update(self.rows(f"SELECT key, id FROM passages WHERE key IN ({marks(part)})", part))
        return found

    def keys(self, ids: Sequence[str]) -> dict[str, int]:
        """Row keys of those ids that are stored."""
        found: dict[str, int] = {}
        for part in chunks(list(dict.fromkeys(ids))):
            found.update(self.rows(f"SELECT id, key FROM passages WHERE id IN ({marks(part)})", part))
        return found

    def require(self, ids: Sequence[str]) -> list[int]:
        """Row keys in the order of `ids`; PassageGone names the first that is not stored."""
        found = self.keys(ids)
        for passage_id in ids:
            if passage_id not in found:
                raise PassageGone(
                    f"no passage {passage_id!r} in {self.where}: it was deleted, or is of another library"
                )
        return [found[passage_id] for passage_id in ids]

    def memories(self, keys: Sequence[int]) -> dict[int, StoredMemory]:
        found = {}
        columns = ", ".join(schema.COLUMNS["memories"])
        for part in chunks(keys):
            for row in self.rows(f"SELECT {columns} FROM memories WHERE passage IN ({marks(part)})", part):
                key, segment, offset, length, layout, xxh3, anchors, source_len = row
                found[key] = StoredMemory(Slot(segment, offset, length, xxh3), layout, anchors, source_len)
        return found


def _passage(row: tuple[Any, ...]) -> Passage:
    _, passage_id, uri, ordinal, text, start, stop, heading, tokens, meta = row
    return Passage(passage_id, uri, ordinal, text, start, stop, heading, tokens, json.loads(meta))


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Slices short enough to be bound to one statement."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
