"""Tables of the catalog, as named and ordered migrations, and the columns that each row's checksum covers."""

from __future__ import annotations

import functools
import json
import re
import sqlite3
from collections.abc import Sequence
from typing import Any

import xxhash

from sac_rag.errors import LibraryCorrupt, LibraryMismatch

APPLICATION_ID = 0x53414352
"""Marks the SQLite file as a catalog of ours ("SACR")."""

MIGRATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "0001-initial",
        (
            """CREATE TABLE head (
                one INTEGER PRIMARY KEY CHECK (one = 1), library TEXT NOT NULL, generation INTEGER NOT NULL,
                next_key INTEGER NOT NULL, codec TEXT NOT NULL, dim INTEGER NOT NULL, fingerprint TEXT NOT NULL,
                faiss INTEGER, faiss_hash BLOB, documents INTEGER NOT NULL, passages INTEGER NOT NULL,
                segments INTEGER NOT NULL, sum BLOB NOT NULL)""",
            """CREATE TABLE segments (
                number INTEGER PRIMARY KEY, size INTEGER NOT NULL, start INTEGER NOT NULL, header BLOB NOT NULL,
                sum BLOB NOT NULL)""",
            """CREATE TABLE documents (
                key INTEGER PRIMARY KEY, uri TEXT NOT NULL UNIQUE, media_type TEXT NOT NULL, meta TEXT NOT NULL,
                content_hash TEXT, sum BLOB NOT NULL)""",
            """CREATE TABLE passages (
                key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document INTEGER NOT NULL REFERENCES documents,
                ordinal INTEGER NOT NULL, text TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
                heading TEXT NOT NULL, tokens INTEGER NOT NULL, meta TEXT NOT NULL, sum BLOB NOT NULL)""",
            "CREATE INDEX passages_document ON passages (document, ordinal)",
            """CREATE TABLE memories (
                passage INTEGER PRIMARY KEY REFERENCES passages, segment INTEGER NOT NULL REFERENCES segments,
                offset INTEGER NOT NULL, length INTEGER NOT NULL, layout TEXT NOT NULL, xxh3 BLOB NOT NULL,
                anchors INTEGER NOT NULL, source_len INTEGER NOT NULL, sum BLOB NOT NULL)""",
            "CREATE INDEX memories_segment ON memories (segment, offset)",
            """CREATE TABLE vectors (
                passage INTEGER PRIMARY KEY REFERENCES passages, vector BLOB NOT NULL, sum BLOB NOT NULL)""",
        ),
    ),
    (
        "0002-unindexed",
        (
            """CREATE TABLE unindexed (
                passage INTEGER PRIMARY KEY, generation INTEGER NOT NULL, sum BLOB NOT NULL)""",
        ),
    ),
    (
        "0003-codec-state",
        (
            """CREATE TABLE codec_state (
                one INTEGER PRIMARY KEY CHECK (one = 1), state BLOB NOT NULL, sum BLOB NOT NULL)""",
        ),
    ),
)
"""(name, statements). Never change one that was released: append."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "head": (
        *("one", "library", "generation", "next_key", "codec", "dim", "fingerprint"),
        *("faiss", "faiss_hash", "documents", "passages", "segments"),
    ),
    "segments": ("number", "size", "start", "header"),
    "documents": ("key", "uri", "media_type", "meta", "content_hash"),
    "passages": ("key", "id", "document", "ordinal", "text", "start", "stop", "heading", "tokens", "meta"),
    "memories": ("passage", "segment", "offset", "length", "layout", "xxh3", "anchors", "source_len"),
    "vectors": ("passage", "vector"),
    "unindexed": ("passage", "generation"),
    "codec_state": ("one", "state"),
}
"""Columns of each table, primary key first, without `sum`; parents stand before their children.

unindexed: row keys of passages that were added, removed or given another vector since the FAISS file was written, and
the generation that did it. codec_state: what a fitted codec was fitted to, one row, or none.
"""
_SINCE = {"unindexed": "0002-unindexed", "codec_state": "0003-codec-state"}
NULLABLE = {"faiss", "faiss_hash", "content_hash"}
_TEXTS = {
    *("library", "codec", "fingerprint", "uri", "media_type", "meta", "content_hash"),
    *("id", "text", "heading", "layout"),
}
_BLOBS = {"faiss_hash", "xxh3", "vector", "state"}
_TYPES: dict[str, dict[str, type]] = {
    table: {
        c: str if c in _TEXTS else bytes if c in _BLOBS or (table, c) == ("segments", "header") else int
        for c in columns
    }
    for table, columns in COLUMNS.items()
}
_SHAPE = "type, name, tbl_name, sql FROM sqlite_master"
_MOST_OBJECTS = 1000
"""Tables and indexes, or formats, that are looked at: more than any format will have."""
_MIGRATIONS_TABLE = (
    "table",
    "migrations",
    "migrations",
    "CREATE TABLE migrations (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
)


def tables(done: Sequence[str]) -> list[str]:
    """The tables of `COLUMNS` that a catalog with these migrations has."""
    return [table for table in COLUMNS if _SINCE.get(table, MIGRATIONS[0][0]) in done]


def row_sum(table: str, values: Sequence[Any]) -> bytes:
    """XXH3-128 over table name and values. SQLite has no page checksums, so each row carries its own."""
    plain = [v.hex() if isinstance(v, bytes) else v for v in values]
    return xxhash.xxh3_128_digest(json.dumps([table, *plain]).encode())


def names() -> list[str]:
    return [name for name, _ in MIGRATIONS]


def check_types(table: str, values: Sequence[Any], where: str) -> None:
    """LibraryCorrupt unless each value of a row has the type of its column: SQLite stores any in any."""
    for column, value in zip(COLUMNS[table], values, strict=True):
        kind = _TYPES[table][column]
        if type(value) is not kind and not (value is None and column in NULLABLE):
            raise LibraryCorrupt(
                f"{column} of a row of {table} in {where} is {type(value).__name__} instead of {kind.__name__}: "
                "restore it or index again"
            )


def applied(connection: sqlite3.Connection, where: str) -> list[str]:
    """Names of the migrations that a catalog has. No row is read before its tables are known to be tables of ours:
    a view in the place of one may take for ever, or all memory.

    LibraryMismatch if this version does not know one of them, LibraryCorrupt unless the catalog has exactly the tables
    of its format: no others, no triggers, no views.
    """
    known, shapes = names(), _shapes(MIGRATIONS)
    found = connection.execute(f"SELECT {_SHAPE} LIMIT {_MOST_OBJECTS}").fetchall()
    if _MIGRATIONS_TABLE not in found or not {kind for kind, *_ in found} <= {"table", "index"}:
        raise LibraryCorrupt(f"{where} has other tables than a catalog of ours: restore it or index again")
    query = f"SELECT substr(name, 1, 200) FROM migrations ORDER BY position LIMIT {_MOST_OBJECTS}"
    done = [row[0] for row in connection.execute(query)]
    # A newer version has all of ours, and then its own: any other list was damaged.
    if (more := done[len(known) :]) and done[: len(known)] == known and all(map(_is_format, more)):
        raise LibraryMismatch(
            f"{where} has the format {more[0]!r}, made by a newer version; this version knows formats up to "
            f"{known[-1]!r}: upgrade sac-rag"
        )
    if not done or done != known[: len(done)]:
        raise LibraryCorrupt(f"{where} lists the formats {done}, which is no beginning of {known}")
    if sorted(found, key=str) != shapes[len(done) - 1]:
        raise LibraryCorrupt(f"{where} does not have the tables of format {done[-1]!r}: restore it or index again")
    return done


def _is_format(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[0-9]{4}-[a-z0-9-]+", name, re.ASCII) is not None


def migrate(connection: sqlite3.Connection, done: Sequence[str], upto: int | None = None) -> None:
    """Apply what is missing after `done`, within the caller's transaction."""
    if not done:
        connection.execute(_MIGRATIONS_TABLE[-1])
    for position, (name, statements) in enumerate(MIGRATIONS[:upto]):
        if position >= len(done):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", (position, name))


@functools.cache
def _shapes(migrations: tuple[Any, ...]) -> list[list[tuple[Any, ...]]]:
    """Tables and indexes after each migration, sorted."""
    found = []
    for count in range(1, len(migrations) + 1):
        fresh = sqlite3.connect(":memory:")
        try:
            migrate(fresh, [], upto=count)
            found.append(sorted(fresh.execute(f"SELECT {_SHAPE}").fetchall(), key=str))
        finally:
            fresh.close()
    return found
