"""Files as an attacker makes them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from pathlib import Path

STATE = {"a": ["word a1", "word a2"], "b": ["word b1"]}
"""What the library of the fixture `folder` holds."""
MAGIC = bytes.fromhex("d9d505f920a163d7")
SECTOR = 512


def page_size(catalog: Path) -> int:
    with sqlite3.connect(catalog) as db:
        return int(db.execute("PRAGMA page_size").fetchone()[0])


def forged_journal(folder: Path, name: str | bytes, *, checksum: int | None = None) -> None:
    """A rollback journal without pages, hot for SQLite, whose tail names a super-journal."""
    catalog = folder / "catalog.sqlite"
    page = page_size(catalog)
    header = MAGIC + struct.pack(">IIIII", 0, 0, catalog.stat().st_size // page, SECTOR, page)
    text = os.fsencode(name)
    tail = struct.pack(">I", 0x40000000 // page + 1) + text
    tail += struct.pack(">II", len(text), sum(text) if checksum is None else checksum) + MAGIC
    (folder / "catalog.sqlite-journal").write_bytes(header.ljust(SECTOR, b"\0") + tail)


def half_done(folder: Path, into: Path) -> Path:
    """A copy of a library as a writer leaves it that is killed after it wrote into the catalog, and before its commit:
    rows of the catalog are gone, a genuine journal holds them."""
    db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
    db.execute("PRAGMA cache_size=1")
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TABLE filler (x)")
    db.execute("INSERT INTO filler SELECT zeroblob(3000) FROM passages, passages, passages")
    for table in ("memories", "vectors", "passages", "documents"):
        db.execute(f"DELETE FROM {table}")
    db.execute("SELECT count(*) FROM filler").fetchone()
    copy = Path(shutil.copytree(folder, into))
    db.execute("ROLLBACK")
    db.close()
    assert (copy / "catalog.sqlite-journal").stat().st_size > SECTOR
    assert (copy / "catalog.sqlite").read_bytes() != (folder / "catalog.sqlite").read_bytes()
    return copy
