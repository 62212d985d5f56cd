"""Catalogs that are made to hang their reader, to eat its memory, or to run what they bring along."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from forgery import STATE
from library_support import check, fill

from sac_rag.errors import LibraryCorrupt, LibraryError
from sac_rag.library import connection, schema
from sac_rag.library.catalog import Catalog
from sac_rag.library.library import Library
from sac_rag.library.opening import head_of
from sac_rag.library.repair import Remade, repair
from sac_rag.records import Passage

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
APART = """
import resource, sys
from pathlib import Path
from sac_rag.errors import SacError
from sac_rag.library.library import Library
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for write in (False, True):
    try:
        Library.open(Path(sys.argv[1]), write=write)
        print("opened")
    except SacError as error:
        print(type(error).__name__, error)
"""


def opened_apart(folder: Path) -> list[str]:
    """What opening says, to read and to write, in a process that may take little time and memory."""
    done = subprocess.run(
        [sys.executable, "-c", APART, str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def change(folder: Path, *statements: str) -> None:
    db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
    for statement in statements:
        db.execute(statement)
    db.close()


def with_schema(folder: Path, statement: str, *parameters: object) -> None:
    """Change what the file says of its own tables."""
    db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
    db.execute("PRAGMA writable_schema=ON")
    db.execute(statement, parameters)
    db.close()


@pytest.mark.parametrize("table", ["migrations", "head", "passages", "segments"])
@pytest.mark.parametrize(
    "query",
    [
        f"{ENDLESS} SELECT count(*) AS position, 'x' AS name FROM n",
        f"{ENDLESS} SELECT i AS position, hex(zeroblob(1000000)) AS name FROM n",
        f"{ENDLESS} SELECT max(i) AS position, group_concat(hex(zeroblob(100000))) AS name FROM n",
        "SELECT 1 AS position, '0001-initial' AS name UNION ALL SELECT a.rowid, 'x' FROM sqlite_master a, "
        + ", ".join(f"sqlite_master {c}" for c in "bcdefghijklmnopqrst"),
    ],
)
def test_a_view_in_the_place_of_a_table_is_not_asked(folder: Path, table: str, query: str) -> None:
    change(folder, "PRAGMA foreign_keys=OFF", f"DROP TABLE {table}", f"CREATE VIEW {table} AS {query}")
    for said in opened_apart(folder):
        assert said.startswith("LibraryCorrupt ") and "tables" in said


def test_the_schema_is_judged_before_a_row_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        opened = real(*args, **options)
        if "?mode=ro" in args[0] and "nolock" not in args[0]:
            opened.set_trace_callback(asked.append)
        return opened

    monkeypatch.setattr(connection.sqlite3, "connect", connect)
    Library.open(folder)
    rows = [sql for sql in asked if not sql.startswith(("PRAGMA", "BEGIN"))]
    assert rows[0].startswith("SELECT type, name, tbl_name, sql FROM sqlite_master")
    assert rows[1].startswith("SELECT substr(name, 1, 200) FROM migrations")
    assert rows[2].startswith("SELECT one, library")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON passages BEGIN DELETE FROM passages; END",
        "CREATE VIEW more AS SELECT load_extension('x')",
        "CREATE VIRTUAL TABLE more USING fts5(x)",
        "CREATE VIRTUAL TABLE more USING rtree(id, a, b)",
        "ALTER TABLE head ADD COLUMN more GENERATED ALWAYS AS (hex(zeroblob(1e9))) VIRTUAL",
        "CREATE INDEX more ON passages (length(text))",
        "CREATE INDEX more ON passages (key) WHERE like('%a%a%a%', text)",
        "CREATE TABLE more (x DEFAULT (randomblob(9)), CHECK (x > 1))",
        "ALTER TABLE documents RENAME COLUMN uri TO url",
        "ANALYZE",
    ],
)
def test_what_a_schema_may_bring_along_is_refused(folder: Path, statement: str) -> None:
    change(folder, statement)
    for write in (False, True):
        with pytest.raises(LibraryCorrupt, match="tables"):
            Library.open(folder, write=write)
    with pytest.raises(LibraryCorrupt, match="tables"):
        head_of(folder)


def test_a_schema_that_contradicts_itself(folder: Path) -> None:
    """A view of a table's name beside that table, and rows of the schema that are none."""
    with_schema(
        folder,
        "INSERT INTO sqlite_master VALUES ('view', 'migrations', 'migrations', 0, ?)",
        f"CREATE VIEW migrations AS {ENDLESS} SELECT i AS position, 'x' AS name FROM n",
    )
    for said in opened_apart(folder):
        assert said.startswith("LibraryCorrupt ")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'passages') "
        "WHERE name = 'migrations'",
        "UPDATE sqlite_master SET rootpage = 1 WHERE name = 'head'",
        "UPDATE sqlite_master SET rootpage = 999999 WHERE name = 'passages_document'",
        "UPDATE sqlite_master SET sql = hex(zeroblob(40000000)) WHERE name = 'head'",
        "INSERT INTO sqlite_master SELECT a.* FROM sqlite_master a, sqlite_master b, sqlite_master c, sqlite_master d",
    ],
)
def test_schemas_that_lie(folder: Path, statement: str) -> None:
    with_schema(folder, statement)
    for said in opened_apart(folder):
        assert said.startswith(("LibraryCorrupt ", "LibraryMismatch "))


def pages_of(folder: Path, table: str) -> tuple[bytearray, int, int]:
    """(bytes of the catalog, its page size, offset of the root page of a table)."""
    db = sqlite3.connect(folder / "catalog.sqlite")
    size = int(db.execute("PRAGMA page_size").fetchone()[0])
    root = int(db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()[0])
    db.close()
    return bytearray((folder / "catalog.sqlite").read_bytes()), size, (root - 1) * size


@pytest.mark.parametrize("table", ["documents", "passages", "memories", "passages_document"])
def test_pages_that_are_read_again_and_again(folder: Path, table: str) -> None:
    """Every pointer of a root page leads to one page: rows without end, out of few bytes, all with right checksums."""
    with Library.open(folder, write=True) as library:
        fill(library, {f"d{i}": [f"word {i} " * 40] for i in range(400)})
    data, _, root = pages_of(folder, table)
    assert data[root] in (2, 5), "not an inner page"
    cells = int.from_bytes(data[root + 3 : root + 5], "big")
    places = [int.from_bytes(data[root + 12 + 2 * i :][:2], "big") for i in range(cells)]
    first = data[root + places[0] :][:4]
    for place in places:
        data[root + place : root + place + 4] = first
    data[root + 8 : root + 12] = first
    (folder / "catalog.sqlite").write_bytes(data)
    said = opened_apart(folder)
    assert said[1].startswith("LibraryCorrupt ")
    # A reader makes its own indexes; it is not led astray by those of the file.
    assert said[0] == "opened" if table == "passages_document" else said[0].startswith("LibraryCorrupt ")


def varint(value: int) -> bytes:
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def test_a_value_whose_pages_form_a_circle(folder: Path) -> None:
    """A row of a few pages that says it is two million characters long, and whose last page leads to itself."""
    long, claimed = "Z" * 20_000, 1_000_000
    with Library.open(folder, write=True) as library:
        fill(library, {"long": [long]})
    data, size, _ = pages_of(folder, "passages")
    kind = varint(13 + 2 * len(long))
    at = data.index(kind)
    assert len(kind) == 3 == len(varint(13 + 2 * claimed))
    payload = data[at - 9 : at - 6]
    assert payload[0] & payload[1] & 0x80
    data[at : at + 3] = varint(13 + 2 * claimed)
    data[at - 9 : at - 6] = varint(claimed + 100)
    full = [n for n in range(len(data) // size) if data[n * size + 100 : n * size + 200] == b"Z" * 100]
    last = next(n for n in full if data[n * size : n * size + 4] == bytes(4))
    data[last * size : last * size + 4] = (last + 1).to_bytes(4, "big")
    (folder / "catalog.sqlite").write_bytes(data)
    reading, writing = opened_apart(folder)
    assert reading == "opened", "the row is passed over, as any that cannot be read"
    assert writing.startswith("LibraryCorrupt ") and "too big" in writing
    with Library.open(folder) as library:
        assert any("too big" in line for line in library.verify(deep=False))
        assert not library.search(None, "Z" * 20, 9, mode="lexical")


def test_rows_that_share_their_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may not be longer together than their file is: as they are where several point to the same pages."""
    with Catalog.read(folder) as disk:
        rows = list(disk.verified("passages"))
        total = sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
        disk._size = total
        assert list(disk.verified("passages")) == rows
        disk._size = total - 1
        with pytest.raises(LibraryCorrupt, match="repeats rows"):
            list(disk.verified("passages"))


def test_reading_is_bounded_by_the_length_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STEPS", -1)
    monkeypatch.setattr(connection, "STEPS_PER_BYTE", 0)
    monkeypatch.setattr(connection, "_AT_ONCE", 10)
    with pytest.raises(LibraryCorrupt, match="more steps to read than a file of its length can need"):
        Library.open(folder)


def test_a_sound_library_takes_a_small_part_of_what_it_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Library.open(folder, write=True) as library:
        fill(library, {f"d{i}": ["x", "y", "z"] for i in range(200)})
    monkeypatch.setattr(connection, "STEPS", 0)
    monkeypatch.setattr(connection, "STEPS_PER_BYTE", 1)
    monkeypatch.setattr(connection, "_AT_ONCE", 1000)
    with Library.open(folder, write=True) as library:
        assert library.verify() == []
        library.gc()


def rewritten(folder: Path, table: str, **values: object) -> None:
    """Put values into the first row of a table, with a right checksum."""
    columns = schema.COLUMNS[table]
    db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
    db.execute("PRAGMA foreign_keys=OFF")
    row = dict(zip(columns, db.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchone(), strict=True))
    key = row[columns[0]]
    row |= values
    sets = ", ".join(f"{c} = ?" for c in (*columns, "sum"))
    db.execute(
        f"UPDATE {table} SET {sets} WHERE {columns[0]} = ?",
        (*row.values(), schema.row_sum(table, [*row.values()]), key),
    )
    db.close()


DEEP = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("head", {"fingerprint": DEEP}),
        ("head", {"fingerprint": '{"a":' * 50_000 + "1" + "}" * 50_000}),
        ("head", {"fingerprint": '{"a":' * 300 + "1" + "}" * 300}),
        ("head", {"fingerprint": "[]"}),
        ("head", {"fingerprint": '{"model": NaN}'}),
        ("head", {"fingerprint": "not json"}),
        ("head", {"fingerprint": b"{}"}),
        ("head", {"dim": "many"}),
        ("head", {"dim": 0}),
        ("head", {"dim": 2**40}),
        ("head", {"dim": 8.5}),
        ("head", {"generation": "x"}),
        ("head", {"generation": -1}),
        ("head", {"next_key": b"9"}),
        ("head", {"faiss": -3}),
        ("head", {"faiss": "../x"}),
        ("head", {"faiss_hash": "text"}),
        ("head", {"library": 7.5}),
        ("head", {"codec": b"bf16"}),
        ("head", {"passages": "many"}),
        ("segments", {"size": "x"}),
        ("segments", {"header": "x"}),
        ("memories", {"offset": "x"}),
        ("documents", {"uri": b"a"}),
        ("passages", {"text": b"a"}),
        ("passages", {"start": "x"}),
    ],
)
def test_wrong_types_with_right_checksums(folder: Path, table: str, values: dict[str, object]) -> None:
    rewritten(folder, table, **values)
    for write in (False, True):
        with pytest.raises(LibraryCorrupt):
            Library.open(folder, write=write)


@pytest.mark.parametrize("meta", [DEEP, "[]", "5", '{"a":' * 101 + "1" + "}" * 101, '{"a": Infinity}', "", "{"])
@pytest.mark.parametrize("table", ["documents", "passages"])
def test_metadata_that_is_none(folder: Path, table: str, meta: str) -> None:
    rewritten(folder, table, meta=meta)
    with Library.open(folder) as library:
        calls = [lambda: library.search(None, "word", 1, mode="lexical", where={"x": 1})]
        calls.append(library.documents if table == "documents" else library.passages)  # type: ignore[arg-type]
        for call in calls:
            with pytest.raises(LibraryCorrupt, match="metadata"):
                call()


@pytest.mark.parametrize("layout", [DEEP, "{}", "[5]", '[["keys", "F32", [1e9]]]', '[["keys", "F32", [true]]]', "NaN"])
def test_layouts_that_are_none(folder: Path, layout: str) -> None:
    with Library.open(folder, write=True) as library:
        fill(library, {"c": ["word c"]})  # a second segment, for gc to join with the first
    rewritten(folder, "memories", layout=layout)
    with Library.open(folder) as library:
        with pytest.raises(LibraryCorrupt):
            library.load([p.id for p in library.passages()])
        assert len(library.verify()) == 1
    with Library.open(folder, write=True) as library, pytest.raises(LibraryCorrupt):
        library.gc()
    left: list[int] = []

    def remake(head: object, compress: Sequence[Passage], embed: Sequence[Passage]) -> Remade:
        left.append(len(compress))
        raise LibraryError("no model here")

    with pytest.raises(LibraryError, match="no model here"):
        repair(folder, remake)
    assert left == [1]


@pytest.mark.parametrize("meta", [DEEP, "[]", "{"])
def test_repair_refuses_metadata_that_are_none(folder: Path, meta: str) -> None:
    rewritten(folder, "passages", meta=meta)
    (folder / "seg-1.safetensors").unlink()
    with pytest.raises(LibraryCorrupt, match="metadata"):
        repair(folder, lambda *_: Remade())


def test_metadata_that_could_not_be_read_again_are_not_stored(folder: Path) -> None:
    from library_support import put

    deep: Any = 1
    for _ in range(5_000):
        deep = [deep]
    shallow: Any = json.loads("[" * 90 + "]" * 90)
    with Library.open(folder, write=True) as library:
        with pytest.raises(LibraryError, match="JSON"), library.transaction() as tx:
            put(tx, library, "deep", ["word"], {"deep": deep})
        with library.transaction() as tx:
            put(tx, library, "deep", ["word"], {"deep": shallow})
        assert library.documents(["deep"])[0].meta == {"deep": shallow}


def test_a_catalog_with_holes_costs_no_more_than_it_holds(folder: Path) -> None:
    os.truncate(folder / "catalog.sqlite", 1 << 40)  # a terabyte that takes up nothing
    with Library.open(folder) as library:
        check(library, STATE)
