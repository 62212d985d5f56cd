"""Files beside a catalog, and catalogs that are no files: SQLite acts on them before it reads a row."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import STATE, forged_journal, half_done
from library_support import check

from sac_rag.errors import LibraryError, LibraryUnsafe
from sac_rag.library.checks import problems
from sac_rag.library.library import Library
from sac_rag.library.opening import head_of

WAYS: dict[str, Callable[[Path], object]] = {
    "read": lambda folder: Library.open(folder),
    "write": lambda folder: Library.open(folder, write=True),
    "head": head_of,
}
"""Every way to a catalog."""


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of each file of a folder, links not followed."""
    return {
        f.name: os.fsencode(os.readlink(f)) if f.is_symlink() else f.read_bytes() if f.is_file() else b"<special>"
        for f in folder.iterdir()
        if f.name != "writer.lock"
    }


def test_the_forgery_is_a_real_one(folder: Path, victim: Path) -> None:
    forged_journal(folder, str(victim))
    db = sqlite3.connect(folder / "catalog.sqlite")
    assert db.execute("SELECT count(*) FROM passages").fetchone() == (3,)
    db.close()
    assert not victim.exists()  # what the tests below must not see


@pytest.mark.parametrize("way", WAYS)
def test_a_journal_that_names_a_file_is_refused_and_the_file_stays(folder: Path, victim: Path, way: str) -> None:
    forged_journal(folder, str(victim))
    before = contents(folder)
    with pytest.raises(LibraryUnsafe, match=f"catalog.sqlite-journal names '{victim}'.*delete"):
        WAYS[way](folder)
    assert victim.read_text() == "keep me"
    assert contents(folder) == before
    assert "catalog.sqlite-journal names" in problems(folder, deep=True)[0]


def test_an_open_library_refuses_it_too(folder: Path, victim: Path) -> None:
    with Library.open(folder) as reader:
        forged_journal(folder, str(victim))
        with pytest.raises(LibraryUnsafe):
            reader.refresh()
        assert "names" in reader.verify()[0]
        (folder / "catalog.sqlite-journal").unlink()
        check(reader, STATE)
    with Library.open(folder, write=True) as writer:
        forged_journal(folder, str(victim))
        with pytest.raises(LibraryUnsafe), writer.transaction():
            pass
        with pytest.raises(LibraryError):
            writer.documents()
    assert victim.read_text() == "keep me"


@pytest.mark.parametrize(
    "name",
    [
        *("victim", "../victim", "./catalog.sqlite", "writer.lock", "seg-1.safetensors", "/dev/null"),
        *("x" * 600, "nowhere", b"\xff\xfe", "new\nline\x1b[31m"),
    ],
)
def test_whatever_it_names(folder: Path, victim: Path, name: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for checksum in (None, 0):  # SQLite believes the right one alone
        forged_journal(folder, name, checksum=checksum)
        before = contents(folder)
        for way in WAYS.values():
            with pytest.raises(LibraryUnsafe, match="names"):
                way(folder)
        assert contents(folder) == before
    assert victim.read_text() == "keep me"


def test_a_name_longer_than_its_journal(folder: Path) -> None:
    forged_journal(folder, "x")
    path = folder / "catalog.sqlite-journal"
    path.write_bytes(path.read_bytes()[:-16] + (2**32 - 1).to_bytes(4, "big") + path.read_bytes()[-12:])
    with pytest.raises(LibraryUnsafe, match="names"):
        Library.open(folder)


@pytest.mark.parametrize("write", [False, True])
def test_a_genuine_journal_of_a_killed_writer_is_taken_back(folder: Path, tmp_path: Path, write: bool) -> None:
    copy = half_done(folder, tmp_path / "half")
    with Library.open(copy, write=write) as library:
        check(library, STATE)
        assert library.verify() == []
    assert not (copy / "catalog.sqlite-journal").exists()
    assert (copy / "catalog.sqlite").read_bytes() == (folder / "catalog.sqlite").read_bytes()


def test_a_genuine_journal_with_a_name_appended(folder: Path, tmp_path: Path, victim: Path) -> None:
    copy = half_done(folder, tmp_path / "half")
    genuine = (copy / "catalog.sqlite-journal").read_bytes()
    forged_journal(copy, str(victim))
    forged = (copy / "catalog.sqlite-journal").read_bytes()
    (copy / "catalog.sqlite-journal").write_bytes(genuine + forged[512:])
    before = contents(copy)
    for way in WAYS.values():
        with pytest.raises(LibraryUnsafe, match="victim"):
            way(copy)
    assert contents(copy) == before and victim.read_text() == "keep me"


def place(path: Path, kind: str, victim: Path) -> None:
    if kind == "symlink":
        path.symlink_to(victim)
    elif kind == "dangling":
        path.symlink_to(victim.with_name("nowhere"))
    elif kind == "hard link":
        path.hardlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(path))
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "fifo", "folder", "socket"])
def test_journals_that_are_something_else(folder: Path, victim: Path, kind: str) -> None:
    place(folder / "catalog.sqlite-journal", kind, victim)
    before = contents(folder)
    for way in WAYS.values():
        with pytest.raises(LibraryUnsafe, match="catalog.sqlite-journal is a link or no file"):
            way(folder)
    assert contents(folder) == before and victim.read_text() == "keep me"


def test_a_link_to_a_genuine_journal(folder: Path, tmp_path: Path) -> None:
    copy = half_done(folder, tmp_path / "half")
    moved = (copy / "catalog.sqlite-journal").rename(tmp_path / "journal")
    bytes_before = moved.read_bytes()
    for link in (os.symlink, os.link):
        link(moved, copy / "catalog.sqlite-journal")
        with pytest.raises(LibraryUnsafe):
            Library.open(copy)
        (copy / "catalog.sqlite-journal").unlink()
    assert moved.read_bytes() == bytes_before


@pytest.mark.parametrize("name", ["catalog.sqlite-wal", "catalog.sqlite-shm"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "hard link", "fifo", "empty"])
def test_write_ahead_logs_are_refused(folder: Path, victim: Path, name: str, kind: str) -> None:
    place(folder / name, kind, victim)
    before = contents(folder)
    for way in WAYS.values():
        with pytest.raises(LibraryUnsafe, match=name):
            way(folder)
    assert contents(folder) == before and victim.read_text() == "keep me"


def test_a_catalog_that_asks_for_a_write_ahead_log(folder: Path) -> None:
    with sqlite3.connect(folder / "catalog.sqlite") as db:
        db.execute("PRAGMA journal_mode=WAL")
    db.close()
    before = contents(folder)
    assert set(before) == {"catalog.sqlite", "seg-1.safetensors", "faiss-1.idx"}
    for way in WAYS.values():
        with pytest.raises(LibraryUnsafe, match="write-ahead log"):
            way(folder)
    assert contents(folder) == before


def test_a_log_is_not_read(folder: Path, tmp_path: Path) -> None:
    """A log that is left beside a catalog would change what is read from it."""
    db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("DELETE FROM memories")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    db.close()
    assert (copy / "catalog.sqlite-wal").stat().st_size > 0
    with pytest.raises(LibraryUnsafe):
        Library.open(copy)


def test_readers_write_nothing(folder: Path) -> None:
    os.chmod(folder / "catalog.sqlite", 0o400)
    os.chmod(folder, 0o500)
    before = {f.name: f.stat() for f in folder.iterdir()}
    with Library.open(folder) as reader:
        check(reader, STATE)
        assert reader.verify() == [] and reader.refresh() is False
    assert head_of(folder).passages == 3
    after = {f.name: f.stat() for f in folder.iterdir()}
    assert {n: (s.st_mtime_ns, s.st_ctime_ns) for n, s in after.items()} == {
        n: (s.st_mtime_ns, s.st_ctime_ns) for n, s in before.items()
    }
    os.chmod(folder, 0o700)


def test_reading_opens_the_catalog_for_reading_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag.library import connection

    opened: list[str] = []
    real = sqlite3.connect

    def connect(target: str, **options: object) -> sqlite3.Connection:
        opened.append(target)
        return real(target, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(connection.sqlite3, "connect", connect)
    with Library.open(folder) as reader:
        reader.verify()
    files = [target for target in opened if target.startswith("file:")]
    assert len(files) >= 4 and all("?mode=ro" in target for target in files)


def test_a_lock_that_is_another_file_is_not_emptied(folder: Path, victim: Path) -> None:
    lock = folder / "writer.lock"
    for kind, error in (("hard link", LibraryUnsafe), ("fifo", LibraryUnsafe), ("symlink", LibraryError)):
        lock.unlink()
        place(lock, kind, victim)
        with pytest.raises(error):
            Library.open(folder, write=True)
        assert victim.read_text() == "keep me"


def test_a_catalog_of_two_names_is_read_and_not_changed(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "kept copy"
    other.hardlink_to(folder / "catalog.sqlite")
    with Library.open(folder) as reader:
        check(reader, STATE)
    with pytest.raises(LibraryUnsafe, match=r"2 hard links.*cp -r"):
        Library.open(folder, write=True)


def test_a_catalog_exchanged_while_it_is_opened(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag.library import catalog

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    real = catalog.refuse_wal

    def exchange(path: Path) -> None:
        real(path)
        os.replace(other / "catalog.sqlite", path)

    monkeypatch.setattr(catalog, "refuse_wal", exchange)
    with pytest.raises(LibraryError, match="exchanged"):
        Library.open(folder)


def test_no_connection_attaches_another_database(folder: Path, tmp_path: Path) -> None:
    from sac_rag.library.catalog import Catalog

    for write in (False, True):
        opened = Catalog.connect(folder, write=write)
        with pytest.raises(sqlite3.OperationalError, match="too many attached"):
            opened.connection.execute("ATTACH ? AS other", (str(tmp_path / "other"),))
        opened.close()
    assert not (tmp_path / "other").exists()
    with Library.open(folder, write=True) as library:
        library.gc()  # VACUUM, which attaches its own
        check(library, STATE)


def test_folders_whose_names_mean_something_in_addresses(tmp_path: Path, folder: Path) -> None:
    for name in ("a?mode=memory", "b#c", "d%20e", "f&immutable=1", "g?vfs=x"):
        moved = Path(shutil.copytree(folder, tmp_path / name))
        with Library.open(moved, write=True) as library:
            check(library, STATE)
