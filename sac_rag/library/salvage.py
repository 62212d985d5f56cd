"""What can still be read of a damaged catalog, row by row, and which documents the rest belongs to.

A row counts when SQLite gives it out and its checksum holds; the others are named. Rows that are simply not there,
and that nothing refers to, were deleted.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sac_rag.errors import LibraryCorrupt
from sac_rag.library import schema
from sac_rag.library.catalog import Catalog, Head
from sac_rag.library.connection import connect

MOST_PROBES = 5_000_000
"""Row keys that are looked for one by one where a table cannot be read from end to end."""

Row = tuple[Any, ...]


@dataclass
class Salvaged:
    """Rows by table and primary key, without their checksums."""

    head: Head
    rows: dict[str, dict[int, Row]]
    bad: dict[str, dict[int, Row | None]]
    """Rows that are there and do not count, as they are, or None where they cannot be read at all."""
    lines: list[str] = field(default_factory=list)
    """What is wrong, by document."""

    def sound(self) -> dict[str, dict[int, Row]]:
        """The rows whose parents are there: a document's passages, and the memories of these in segments."""
        rows = self.rows
        passages = {k: r for k, r in rows["passages"].items() if r[2] in rows["documents"]}
        memories = {k: r for k, r in rows["memories"].items() if k in passages and r[1] in rows["segments"]}
        vectors = {k: r for k, r in rows["vectors"].items() if k in passages}
        return {**rows, "passages": passages, "memories": memories, "vectors": vectors}

    def lost_passages(self) -> set[int]:
        """Row keys of passages whose text cannot be read. A damaged row's own key may be damaged, too, and a key that
        cannot be looked for may never have been one: both count where something else speaks for them."""
        rows = self.rows
        known = (rows["memories"].keys() | rows["vectors"].keys()) - rows["passages"].keys()
        return known | self._spoken_for("passages", self.head.passages - len(rows["passages"]) - len(known), known)

    def nameless(self) -> set[int]:
        """Row keys of documents that passages belong to, and whose own row cannot be read."""
        return {row[2] for row in self.rows["passages"].values()} - self.rows["documents"].keys()

    def empty(self) -> set[int]:
        """Row keys of other documents that cannot be read; none of their passages can."""
        known = self.nameless()
        return self._spoken_for("documents", self.head.documents - len(self.rows["documents"]) - len(known), known)

    def unknown(self) -> tuple[int, int]:
        """How many documents and passages there are of which nothing else is known."""
        documents = len(self.rows["documents"]) + len(self.nameless()) + len(self.empty())
        passages = len(self.rows["passages"]) + len(self.lost_passages())
        return max(0, self.head.documents - documents), max(0, self.head.passages - passages)

    def _spoken_for(self, table: str, count: int, known: set[int]) -> set[int]:
        """Keys of damaged rows, as many as the head counts beyond those that are known."""
        damaged = {key for key, row in self.bad[table].items() if row is not None and 0 < key < self.head.next_key}
        return set(sorted(damaged - self.rows[table].keys() - known)[: max(0, count)])


def salvage(disk: Catalog, *, vectors: bool = True) -> Salvaged:
    """Read a catalog within its read transaction; LibraryCorrupt when not even its head can be read.

    vectors: also their table, which is most of the file.
    """
    try:
        head = disk.head()
    except sqlite3.DatabaseError as e:
        raise LibraryCorrupt(f"{disk.where} cannot be read ({e}); `sac repair --copy` takes back a kept copy") from e
    found = Salvaged(head, {t: {} for t in schema.COLUMNS}, {t: {} for t in schema.COLUMNS})
    for table in schema.tables(disk.formats()):
        if table != "head" and (vectors or table != "vectors"):
            stop = head.generation + 1 if table == "segments" else head.next_key
            _read(disk, table, stop, found.rows[table], found.bad[table])
    if found.bad["codec_state"]:
        raise LibraryCorrupt(
            f"codec_state in {disk.where} fails its checksum, without which no memory can be read: `sac repair --copy` "
            "takes back a kept copy, or index the documents again"
        )
    found.lines = list(_lines(disk.where, found, vectors))
    return found


def salvaged_rows(disk: Catalog, table: str, head: Head) -> list[Row]:
    """The rows of one table that count."""
    good: dict[int, Row] = {}
    _read(disk, table, head.next_key, good, {})
    return list(good.values())


def copy(disk: Catalog) -> tuple[Catalog, list[str]]:
    """As `Catalog.copy`, of what is sound; and what is wrong with the rest, one line each."""
    found = salvage(disk, vectors=False)
    memory = Catalog(connect(None), disk.folder)
    memory.connection.execute("BEGIN")
    schema.migrate(memory.connection, [])
    memory.write("head", [found.head.row()])
    sound = found.sound()
    for table in schema.COLUMNS:
        if table not in ("head", "vectors"):
            memory.write(table, sound[table].values())
    memory.connection.execute("COMMIT")
    return memory, found.lines


def _read(disk: Catalog, table: str, stop: int, good: dict[int, Row], bad: dict[int, Row | None]) -> None:
    """Read a table from end to end; where SQLite cannot, key by key, until it can again. Keys are below `stop`."""
    columns = schema.COLUMNS[table]
    query = f"SELECT {', '.join(columns)}, sum FROM {table} WHERE {columns[0]}"
    last, probes, guard = 0, 0, disk.guard(table)

    def take(row: Row) -> None:
        nonlocal last
        guard(row)
        last = row[0]
        (good if disk.is_sound(table, row) else bad)[last] = row[:-1]

    while True:
        try:
            for row in disk.connection.execute(f"{query} > ? ORDER BY {columns[0]}", (last,)):
                take(row)
            return
        except sqlite3.DatabaseError as e:
            _refuse_busy(disk, e)
        while last + 1 < stop:
            probes += 1
            if probes > MOST_PROBES:
                raise LibraryCorrupt(f"too much of {table} in {disk.where} cannot be read: take back a kept copy")
            try:
                row = disk.connection.execute(f"{query} = ?", (last + 1,)).fetchone()
            except sqlite3.DatabaseError as e:
                _refuse_busy(disk, e)
                bad[last + 1] = None
                row = None
            if row is not None:
                take(row)
                break
            last += 1
        else:
            return


def _refuse_busy(disk: Catalog, error: sqlite3.DatabaseError) -> None:
    """Only damage is passed over."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_IOERR):
        raise LibraryCorrupt(f"{disk.where} cannot be read ({error})") from error


def _lines(where: str, found: Salvaged, vectors: bool) -> Iterator[str]:
    rows, bad = found.rows, found.bad
    names = {key: row[1] for key, row in rows["documents"].items()}
    for key in sorted(found.nameless()):
        count = sum(row[2] == key for row in rows["passages"].values())
        yield f"{where}: the name of document number {key} is damaged; it has {count} passages that can be read"
    lost = found.lost_passages()
    by_document: Counter[str] = Counter()
    for key in lost:
        row = bad["passages"].get(key)
        by_document[names.get(row[2], "") if row else ""] += 1
    for uri, count in sorted(by_document.items()):
        whose = f"document {uri!r}" if uri else "documents whose names cannot be told"
        yield f"{where}: {count} passages of {whose} are damaged: their text cannot be read"
    for table, what in (("memories", "memories"), ("vectors", "vectors")):
        if table == "vectors" and not vectors:
            continue
        without = rows["passages"].keys() - rows[table].keys()
        hit = Counter(names.get(rows["passages"][key][2], "") for key in without)
        for uri, count in sorted(hit.items()):
            yield f"{where}: {count} {what} of document {uri!r} are damaged or missing; `sac repair` makes them again"
    for key in sorted(bad["segments"].keys() | {r[1] for r in rows["memories"].values()} - rows["segments"].keys()):
        yield f"{where}: the row of segment {key} is damaged or missing; `sac repair` makes it again"
    for key in sorted(bad["unindexed"]):
        yield f"{where}: row {key} of what the FAISS file lacks is damaged; `sac repair` writes the file again"
    documents, passages = found.unknown()
    if documents or passages:
        yield f"{where} lost rows: nothing is known of {documents} documents and {passages} passages"
