"""Tables of the catalog, as named and ordered migrations, and the columns that each row's checksum covers."""

from __future__ import annotations

import json
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
}
"""Columns of each table, primary key first, without `sum`; parents stand before their children.

unindexed: row keys of passages that were added, removed or given another vector since the FAISS file was written, and
the generation that did it.
"""
_SINCE = {"unindexed": "0002-unindexed"}


def tables(done: Sequence[str]) -> list[str]:
    """The tables of `COLUMNS` that a catalog with these migrations has."""
    return [table for table in COLUMNS if _SINCE.get(table, MIGRATIONS[0][0]) in done]


def row_sum(table: str, values: Sequence[Any]) -> bytes:
    """XXH3-128 over table name and values. SQLite has no page checksums, so each row carries its own."""
    plain = [v.hex() if isinstance(v, bytes) else v for v in values]
    return xxhash.xxh3_128_digest(json.dumps([table, *plain]).encode())


def names() -> list[str]:
    return [name for name, _ in MIGRATIONS]


def applied(connection: sqlite3.Connection, where: str) -> list[str]:
    """Names of the migrations that a catalog has; LibraryMismatch if this version does not know one of them."""
    found = [row[0] for row in connection.execute("SELECT name FROM migrations ORDER BY position")]
    known = names()
    for name in found:
        if name not in known:
            raise LibraryMismatch(
                f"{where} has the format {name!r}, made by a newer version; this version knows formats up to "
                f"{known[-1]!r}: upgrade sac-rag"
            )
    if not found or found != known[: len(found)]:
        raise LibraryCorrupt(f"{where} lists the formats {found}, which is no beginning of {known}")
    return found


def migrate(connection: sqlite3.Connection, done: Sequence[str], upto: int | None = None) -> None:
    """Apply what is missing after `done`, within the caller's transaction."""
    if not done:
        connection.execute("CREATE TABLE migrations (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)")
    for position, (name, statements) in enumerate(MIGRATIONS[:upto]):
        if position >= len(done):
            for statement in statements:
                connection.execute(statement)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", (position, name))


def check_shape(connection: sqlite3.Connection, done: Sequence[str], where: str) -> None:
    """LibraryCorrupt unless the catalog has exactly the tables of its format: no others, no triggers, no views."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    fresh = sqlite3.connect(":memory:")
    try:
        migrate(fresh, [], upto=len(done))
        expected = fresh.execute(query).fetchall()
    finally:
        fresh.close()
    if connection.execute(query).fetchall() != expected:
        raise LibraryCorrupt(f"{where} does not have the tables of format {done[-1]!r}: restore it or index again")
