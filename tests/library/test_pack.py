"""A library as one file: the same library elsewhere, and archives that none of ours are."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, LibraryLocked, LibraryUnsafe
from sac_rag.library import pack as packing
from sac_rag.records import Document


@pytest.fixture
def library(tiny_config: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "a.lib"
    with SacRag.open(folder, config=tiny_config, write=True, create=True) as rag:
        rag.put([Document("canal", "The Erie Canal spans 363 miles."), Document("tides", "Tides follow the Moon.")])
    return folder


@pytest.fixture
def packed(library: Path, tmp_path: Path) -> Path:
    packing.pack(library, tmp_path / "a.pack")
    return tmp_path / "a.pack"


def test_what_is_unpacked_answers_as_what_was_packed(library: Path, tmp_path: Path) -> None:
    told = packing.pack(library, tmp_path / "a.pack")
    assert told.sha256 == hashlib.sha256((tmp_path / "a.pack").read_bytes()).hexdigest()
    assert (told.documents, told.passages, told.fingerprint["ratio"]) == (2, 2, 5.0)
    assert (tmp_path / "a.pack").stat().st_mode & 0o77 == 0
    assert packing.unpack(tmp_path / "a.pack", tmp_path / "b.lib", sha256=told.sha256) == told
    assert (tmp_path / "b.lib").stat().st_mode & 0o777 == 0o700
    stored = {p.name for p in (tmp_path / "b.lib").iterdir()}
    assert stored == {p.name for p in library.iterdir()} - {"writer.lock"}
    for name in stored:
        assert (tmp_path / "b.lib" / name).read_bytes() == (library / name).read_bytes()
    with SacRag.open(library) as a, SacRag.open(tmp_path / "b.lib") as b:
        assert (
            b.ask("How long is the canal?", max_new_tokens=6).text
            == a.ask("How long is the canal?", max_new_tokens=6).text
        )
        assert b.library.verify() == []
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_nothing_is_overwritten(library: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there already"):
        packing.pack(library, packed)
    with pytest.raises(ConfigError, match="there already"):
        packing.unpack(packed, library)


@pytest.mark.parametrize("name", ["none/\0.lib", "file/b.lib", "x" * 300])
def test_names_that_nothing_can_have_are_refused(library: Path, packed: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a file")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="NUL|cannot write"):
        packing.unpack(packed, tmp_path / name)
    with pytest.raises(ConfigError, match="NUL|cannot write"):
        packing.pack(library, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before, "nothing is left"
    with pytest.raises(ConfigError, match="NUL"):
        SacRag.open(f"{library},a\0b.lib")


def test_a_long_name_is_a_name(packed: Path, tmp_path: Path) -> None:
    assert packing.unpack(packed, tmp_path / ("x" * 250)).generation == 1


def test_a_library_that_is_being_written_is_not_packed(library: Path, tmp_path: Path) -> None:
    with SacRag.open(library, write=True), pytest.raises(LibraryLocked):
        packing.pack(library, tmp_path / "b.pack")
    assert not (tmp_path / "b.pack").exists()


def test_another_file_than_was_promised(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(LibraryCorrupt, match="not the file that was packed"):
        packing.unpack(packed, tmp_path / "b.lib", sha256="0" * 64)


def test_every_byte_is_checked(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        bad = tmp_path / "bad.pack"
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :])
        try:
            packing.unpack(bad, tmp_path / f"{at}.lib")
        except LibraryError:
            assert not (tmp_path / f"{at}.lib").exists()
        else:  # a byte that says nothing of a file: a date, say
            for name in os.listdir(tmp_path / f"{at}.lib"):
                assert (tmp_path / f"{at}.lib" / name).read_bytes() == (tmp_path / "a.lib" / name).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        with pytest.raises(LibraryError):
            packing.unpack(bad, tmp_path / "cut.lib")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def rewritten(packed: Path, bad: Path, change: Any) -> Path:
    """The archive again, its members (ZipInfo, bytes) as `change` leaves them."""
    with zipfile.ZipFile(packed) as archive:
        members = [(m, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(bad, "w") as out:
        for info, content in change(members):
            out.writestr(info, content)
    return bad


def link(members: list[Any]) -> list[Any]:
    info = zipfile.ZipInfo("seg-999.safetensors")
    info.external_attr = 0o120777 << 16  # a symbolic link
    return [*members, (info, b"/etc/passwd")]


def squeezed(members: list[Any]) -> list[Any]:
    for info, _ in members:
        info.compress_type = zipfile.ZIP_DEFLATED
    return members


def told_otherwise(**changes: Any) -> Any:
    def change(members: list[Any]) -> list[Any]:
        (info, content), *rest = members
        return [(info, json.dumps({**json.loads(content), **changes})), *rest]

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda ms: [*ms, ("../evil", b"x")], LibraryUnsafe, "no file of a library"),
        (lambda ms: [*ms, ("/etc/evil", b"x")], LibraryUnsafe, "no file of a library"),
        (lambda ms: [*ms, ("sub/catalog.sqlite", b"x")], LibraryUnsafe, "no file of a library"),
        (lambda ms: [*ms, ("writer.lock", b"x")], LibraryUnsafe, "no file of a library"),
        (lambda ms: [*ms, ("seg-999.safetensors", b"x")], LibraryUnsafe, "other files than its"),
        (link, LibraryUnsafe, "other files than its"),
        (lambda ms: ms[1:], LibraryUnsafe, "no manifest.json"),
        (lambda ms: ms[:-1], LibraryUnsafe, "other files than its"),
        (squeezed, LibraryUnsafe, "compressed or encrypted"),
        (told_otherwise(format="sac-rag pack 2"), LibraryError, "this version reads"),
        (told_otherwise(files=1), LibraryUnsafe, "not as ours are"),
        (told_otherwise(files=[{"name": "catalog.sqlite", "size": [], "sha256": "x"}]), LibraryUnsafe, "not as ours"),
        (told_otherwise(files=[{"name": "catalog.sqlite", "size": 1, "sha256": 1}]), LibraryUnsafe, "not as ours"),
        (told_otherwise(files=[{"name": "catalog.sqlite", "size": 1, "sha256": ""}] * 2), LibraryUnsafe, "each once"),
        (told_otherwise(documents="\x1b[2J"), LibraryCorrupt, "documents .* not that of its library"),
        (told_otherwise(generation=None), LibraryCorrupt, "generation .* not that of its library"),
        (lambda ms: [(i, c.replace(b'"format"', b'"format": 1, "format"')) for i, c in ms], LibraryUnsafe, "twice"),
        (told_otherwise(fingerprint={}), LibraryCorrupt, "fingerprint .* not that of its library"),
        (
            lambda ms: [(i, c if i.filename == "manifest.json" else c[::-1]) for i, c in ms],
            LibraryCorrupt,
            "another SHA-256",
        ),
    ],
)
def test_a_hostile_archive_writes_nothing(packed: Path, tmp_path: Path, change: Any, error: Any, message: str) -> None:
    bad = rewritten(packed, tmp_path / "bad.pack", change)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(error, match=message):
        packing.unpack(bad, tmp_path / "b.lib")
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_link_by_the_name_of_a_file_becomes_bytes(packed: Path, tmp_path: Path) -> None:
    """What an archive says of a member's kind is not acted on: names lead to plain files, or to nothing."""

    def linked(members: list[Any]) -> list[Any]:
        for info, _ in members:
            info.external_attr = 0o120777 << 16
        return members

    packing.unpack(rewritten(packed, tmp_path / "bad.pack", linked), tmp_path / "b.lib")
    assert not any(p.is_symlink() for p in (tmp_path / "b.lib").iterdir())


def test_members_that_overlap_are_a_bomb(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = zipfile.ZipFile.infolist

    def overlapping(self: zipfile.ZipFile) -> Any:
        found = members(self)
        for info in found[1:]:
            info.file_size = info.compress_size = packed.stat().st_size
        return found

    monkeypatch.setattr(zipfile.ZipFile, "infolist", overlapping)
    with pytest.raises(LibraryUnsafe, match="overlap"):
        packing.unpack(packed, tmp_path / "b.lib")


def test_a_list_of_members_without_end_is_not_read(packed: Path, tmp_path: Path) -> None:
    """An entry of 47 bytes would become an object of ten times as much, before any is looked at."""
    info = zipfile.ZipInfo("x")
    info.CRC = 0
    entry = info.FileHeader()
    bad, count = tmp_path / "bad.pack", packing.MOST_DIRECTORY // 47 + 1
    central = b"PK\1\2" + bytes(24) + b"\1" + bytes(17) + b"x"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, 47 * count, len(entry), 0)
    bad.write_bytes(entry + central * count + end)
    with pytest.raises(LibraryUnsafe, match="lists its members in"):
        packing.unpack(bad, tmp_path / "b.lib")
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, 47 * count, len(entry))
    place = struct.pack("<4sLQL", b"PK\6\7", 0, len(entry) + 47 * count, 1)
    few = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 47, len(entry), 0)
    for locator, message in ((place, "lists its members in"), (place[:8] + bytes(8) + place[16:], "does not end as")):
        bad.write_bytes(entry + central * count + wide + locator + few)
        with pytest.raises(LibraryUnsafe, match=message):
            packing.unpack(bad, tmp_path / "b.lib")
    bad.write_bytes(packed.read_bytes()[:-2] + b"\1\0c")
    with pytest.raises(LibraryCorrupt, match="does not end as an archive"):
        packing.unpack(bad, tmp_path / "b.lib")
    assert not (tmp_path / "b.lib").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "endless"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pack"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(LibraryError, match="cannot read"):
        packing.unpack(path, tmp_path / "b.lib")


def test_a_disk_without_second_names_takes_a_pack(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    told = packing.pack(library, tmp_path / "a.pack")
    assert hashlib.sha256((tmp_path / "a.pack").read_bytes()).hexdigest() == told.sha256
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
