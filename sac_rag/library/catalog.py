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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryLocked, LibraryNotFound, PassageGone
from sac_rag.foreign import parse_object
from sac_rag.library import folder as files
from sac_rag.library import schema
from sac_rag.library.connection import bound, connect, needs_recovery, reading, refuse_wal
from sac_rag.library.filters import DOCUMENT
from sac_rag.library.journal import check_beside
from sac_rag.library.segments import SegmentInfo, Slot
from sac_rag.records import Passage

STALE = "_stale"
"""Metadata of a document whose newer version could not be read: why."""
_CHUNK = 500
MAX_DIM = 1 << 16
"""Longest vectors that a library may say it has."""
_RECOVERIES = 5
_NO_LIMIT = 1 << 62
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
    changed: int | None = None
    """The generation that last changed passages or vectors; no column, but what `faiss` and `unindexed` say."""

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
        self._size = _NO_LIMIT
        self.format: list[str] = []
        """Names of the applied migrations, where `read` has checked them."""
        self._lock = threading.RLock()

    def __del__(self) -> None:
        if connection := self.__dict__.get("connection"):  # not of one that was never made whole
            connection.close()

    @classmethod
    def create(
        cls, folder: Path, codec: str, dim: int, fingerprint: Mapping[str, Any], codec_state: bytes | None = None
    ) -> None:
        """Write an empty catalog under a temporary name and rename it: it exists whole or not at all."""
        head = Head(uuid.uuid4().hex, 0, 1, codec, dim, dict(fingerprint), None, None, 0, 0, 0)
        cls.write_new(folder, head, {} if codec_state is None else {"codec_state": [(1, codec_state)]})
        os.rename(folder / files.NEW_CATALOG, folder / files.CATALOG)
        files.sync(folder)

    @classmethod
    def write_new(cls, folder: Path, head: Head, tables: Mapping[str, Iterable[Sequence[Any]]]) -> None:
        """Write a catalog with these rows, durable, under the name that it has until it takes the other's place."""
        path = folder / files.NEW_CATALOG
        for leftover in (path, folder / f"{files.NEW_CATALOG}-journal"):
            leftover.unlink(missing_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        catalog = cls(connect(path, write=True), folder)
        try:
            catalog.connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
            catalog.connection.execute("BEGIN IMMEDIATE")
            schema.migrate(catalog.connection, [])
            catalog.write("head", [head.row()])
            for table, rows in tables.items():
                catalog.write(table, rows)
            catalog.connection.execute("COMMIT")
        finally:
            catalog.close()

    @classmethod
    def connect(cls, folder: Path, *, write: bool = True, bounded: bool = False) -> Catalog:
        """Open the file, for who holds the writer's lock; without `write` nothing is changed on disk.

        bounded: it was not checked yet, so that its cost is limited.

        Raises LibraryNotFound when there is none, LibraryUnsafe before SQLite acts on what lies beside it, LibraryError
        when it cannot be looked for; parse errors come at the first use.
        """
        path = folder / files.CATALOG

        def look() -> None:
            check_beside(folder)
            if files.identity(path, write=write) != before:
                raise LibraryError(f"{path} was exchanged while it was opened: try again")

        try:
            before = files.identity(path, write=write)
            check_beside(folder)
            with reading(folder):
                refuse_wal(path)
                return cls(connect(path, write=write, bounded=bounded, look=look), folder)
        except (FileNotFoundError, NotADirectoryError) as e:
            remedy = "name another (--library), or make one with `sac index`"
            if "," in str(folder):
                remedy = "name one alone; several are read by `sac ask`, `sac chat` and `sac ls`"
            raise LibraryNotFound(f"no library at {folder}: {remedy}") from e
        except (OSError, ValueError) as e:  # ValueError: of a name with NUL
            why = getattr(e, "strerror", None) or e
            raise LibraryError(
                f"cannot look for {str(path)!r}: {why}; check the path and the permissions of its folders"
            ) from e

    @classmethod
    @contextlib.contextmanager
    def read(cls, folder: Path) -> Iterator[Catalog]:
        """The file within one read transaction: no commit can happen, and no file vanish, until it ends.

        Opened for reading only; what a killed writer left half done is taken back first. Its tables are those of a
        known format, or LibraryMismatch (a newer one) or LibraryCorrupt is raised; rows are judged where they are read.
        """
        catalog = cls._begun(folder)
        try:
            with reading(folder):
                catalog._check_format()
                yield catalog
        finally:
            catalog.close()

    @classmethod
    def _begun(cls, folder: Path) -> Catalog:
        for _ in range(_RECOVERIES):
            catalog: Catalog | None = None
            try:
                catalog = cls.connect(folder, write=False, bounded=True)
                with reading(folder):
                    catalog.connection.execute("BEGIN")
                    catalog.connection.execute("PRAGMA schema_version").fetchone()
                return catalog
            except LibraryError as e:
                if catalog:
                    catalog.close()
                if not needs_recovery(e.__cause__):
                    raise
            recovering = cls.connect(folder, bounded=True)  # SQLite takes it back, from a journal that was looked at
            try:
                with reading(folder):
                    recovering.connection.execute("PRAGMA schema_version").fetchone()
            finally:
                recovering.close()
        raise LibraryLocked(f"{folder} is busy: its writers are killed again and again; try again")

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
        """All rows of a table with their `sum`; LibraryCorrupt at the first whose checksum or type is wrong."""
        columns, guard = schema.COLUMNS[table], self.guard(table)
        for row in self.connection.execute(f"SELECT {', '.join(columns)}, sum FROM {table} ORDER BY {columns[0]}"):
            guard(row)
            if not self.is_sound(table, row):
                raise LibraryCorrupt(
                    f"row {row[0]} of {table} in {self.where} fails its checksum: `sac verify` names what is damaged, "
                    "`sac repair` mends what can be"
                )
            yield row

    def is_sound(self, table: str, row: Sequence[Any]) -> bool:
        """Whether a row with its `sum` is as it was written; LibraryCorrupt where it is, and no row of ours."""
        if schema.row_sum(table, row[:-1]) != row[-1]:
            return False
        schema.check_types(table, row[:-1], self.where)
        return True

    def guard(self, table: str) -> Callable[[Sequence[Any]], None]:
        """To be called with the rows of a table as they come; LibraryCorrupt where they repeat themselves.

        Whoever writes a catalog can write right checksums, and pages that are read again and again: keys must ascend,
        and all rows together be no longer than the file.
        """
        last, room = None, self._size

        def guard(row: Sequence[Any]) -> None:
            nonlocal last, room
            room -= sum(len(value) for value in row if isinstance(value, str | bytes))
            if room < 0 or (last is not None and row[0] <= last):
                raise LibraryCorrupt(f"{table} in {self.where} repeats rows: restore the library or index again")
            last = row[0]

        return guard

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
        values[5] = self._object(values[5], "the fingerprint")
        head, late = Head(*values), None
        if not (0 < head.dim <= MAX_DIM and min(head.generation, head.next_key, head.faiss or 0) >= 0):
            raise LibraryCorrupt(f"the head of {self.where} is no head of ours ({head.dim=}, {head.generation=})")
        if "unindexed" in schema.tables(self.formats()):
            ((late,),) = self.rows("SELECT max(generation) FROM unindexed")
        return replace(head, changed=max((n for n in (head.faiss, late) if n is not None), default=None))

    def codec_state(self) -> bytes | None:
        """What the library's codec was fitted to; None for one that needs nothing."""
        if "codec_state" not in schema.tables(self.formats()):
            return None
        rows = list(self.verified("codec_state"))
        return rows[0][1] if rows else None

    def set_codec_state(self, state: bytes | None) -> None:
        """Note what the codec is fitted to, within the caller's transaction."""
        self.execute("DELETE FROM codec_state")
        self.write("codec_state", [] if state is None else [(1, state)])

    def formats(self) -> list[str]:
        """Names of the applied migrations: those that `read` has checked, or all where it was brought up to date."""
        return self.format or schema.names()

    def unindexed(self) -> list[int]:
        """Row keys that the FAISS file does not have, or not as they are."""
        return [key for key, _ in self.rows("SELECT passage, generation FROM unindexed")]

    def _object(self, text: str, what: str) -> dict[str, Any]:
        """A JSON object of this catalog; LibraryCorrupt where it is none."""
        try:
            return parse_object(text)
        except ValueError as e:
            raise LibraryCorrupt(f"{what} in {self.where} is damaged ({e}): restore it or index again") from e

    def counted(self, head: Head) -> Head:
        """`head` with the counts as they are in the tables now."""
        tables = ("documents", "passages", "segments")
        return replace(head, **{t: self.rows(f"SELECT count(*) FROM {t}")[0][0] for t in tables})

    def _check_format(self) -> None:
        """Refuse newer formats, foreign files and unexpected tables, before any of its rows is read."""
        connection, pragmas = self.connection, {}
        for name in ("application_id", "journal_mode", "encoding"):
            pragmas[name] = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if pragmas != {"application_id": schema.APPLICATION_ID, "journal_mode": "delete", "encoding": "UTF-8"}:
            raise LibraryCorrupt(f"the catalog in {self.where} is not one of ours or is damaged ({pragmas})")
        self._size = connection.execute("PRAGMA page_count").fetchone()[0]
        self._size *= connection.execute("PRAGMA page_size").fetchone()[0]
        bound(connection, self._size)
        self.format = schema.applied(connection, self.where)

    def copy(self) -> Catalog:
        """A verified snapshot in memory, without vectors, brought to the newest format. Call within `read`."""
        done = self.format
        memory = Catalog(connect(None), self.folder)
        try:
            memory.connection.execute("BEGIN")
            schema.migrate(memory.connection, [], upto=len(done))
            for table in schema.tables(done):
                if table != "vectors":
                    marks = ", ".join("?" * (len(schema.COLUMNS[table]) + 1))
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
        for table in schema.tables(self.formats()):
            for _ in self.verified(table):
                pass
        problems = [row[0] for row in self.connection.execute("PRAGMA integrity_check(5)")]
        missing = self.connection.execute("PRAGMA foreign_key_check").fetchmany(5)
        problems += [f"{row[0]} refers to a missing {row[2]}" for row in missing]
        if problems != ["ok"]:
            raise LibraryCorrupt(f"the catalog in {self.where} is damaged ({'; '.join(problems)}): run `sac repair`")
        self.check_counts()

    def check_counts(self) -> None:
        head = self.head()
        now = self.counted(head)
        memories = self.rows("SELECT count(*) FROM memories")[0][0]
        if now != head or memories != head.passages:
            raise LibraryCorrupt(
                f"{self.where} lost rows: {now.documents} documents, {now.passages} passages, {memories} memories and "
                f"{now.segments} segments instead of {head.documents}, {head.passages}, {head.passages} and "
                f"{head.segments}: run `sac repair`"
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
        return [StoredDocument(uri, kind, self._object(meta, "metadata"), *rest) for uri, kind, meta, *rest in rows]

    def passages(self, document: str | None = None) -> list[Passage]:
        """Passages of a document, or all, in reading order."""
        condition, parameters = ("", ()) if document is None else ("WHERE d.uri = ?", (document,))
        rows = self.rows(f"{_PASSAGES} {condition} ORDER BY d.uri, p.ordinal, p.key", parameters)
        return [self._passage(row) for row in rows]

    def passages_at(self, keys: Sequence[int]) -> dict[int, Passage]:
        """Passages by row key."""
        found = {}
        for part in chunks(keys):
            rows = self.rows(f"{_PASSAGES} WHERE p.key IN ({marks(part)})", part)
            found.update({row[0]: self._passage(row) for row in rows})
        return found

    def all_keys(self) -> list[int]:
        """Row keys of all passages, ascending."""
        return [key for (key,) in self.rows("SELECT key FROM passages ORDER BY key")]

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

    def metas(self, key: int | None = None) -> list[tuple[dict[str, Any], list[int]]]:
        """What passages, or one, are filtered by, each with the row keys of those that have just this: a passage's own
        metadata go before its document's, and both before "document", the uri."""
        query = "SELECT p.key, d.uri, d.meta, p.meta FROM passages p JOIN documents d ON d.key = p.document"
        rows = self.rows(query) if key is None else self.rows(f"{query} WHERE p.key = ?", (key,))
        alike: dict[tuple[str, str, str], list[int]] = {}
        for row, *about in rows:
            alike.setdefault(tuple(about), []).append(row)
        return [
            (
                {
                    "document": uri,
                    **self._object(document, "metadata"),
                    **self._object(passage, "metadata"),
                    DOCUMENT: uri,
                },
                keys,
            )
            for (uri, document, passage), keys in alike.items()
        ]

    def _passage(self, row: tuple[Any, ...]) -> Passage:
        _, passage_id, uri, ordinal, text, start, stop, heading, tokens, meta = row
        return Passage(passage_id, uri, ordinal, text, start, stop, heading, tokens, self._object(meta, "metadata"))

    def memories(self, keys: Sequence[int]) -> dict[int, StoredMemory]:
        found = {}
        columns = ", ".join(schema.COLUMNS["memories"])
        for part in chunks(keys):
            for row in self.rows(f"SELECT {columns} FROM memories WHERE passage IN ({marks(part)})", part):
                key, segment, offset, length, layout, xxh3, anchors, source_len = row
                found[key] = StoredMemory(Slot(segment, offset, length, xxh3), layout, anchors, source_len)
        return found


def chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Slices short enough to be bound to one statement."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]


def marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
