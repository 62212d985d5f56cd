"""A full disk: a typed error, the generation before still answers, nothing half-made stays behind."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from library_support import DIM, FINGERPRINT, FULL, State, check, fill

from sac_rag.errors import LibraryFull
from sac_rag.library.library import Library

OLD: State = {"a": ["word a1", "word a2"], "b": ["word b1"]}
NEW: State = {"c": [f"word {i} " + "text " * 400 for i in range(12)]}


@contextlib.contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(library: Library) -> set[str]:
    expected = {"catalog.sqlite", "writer.lock", f"faiss-{library.head.faiss}.idx"}
    return expected | {f"seg-{u.number}.safetensors" for u in library.stats().segments}


def judge(library: Library, folder: Path, state: State, *, swept: bool = True) -> None:
    check(library, state)
    assert library.verify() == []
    left_over = set(os.listdir(folder)) - {"filler"} - names(library)
    assert not left_over or not swept
    with Library.open(folder) as reader:
        check(reader, state)


@pytest.mark.parametrize("operation", ["add", "gc"])
def test_no_room_at_any_size(tmp_path: Path, operation: str) -> None:
    outcomes = set()
    for size in range(0, 160_000, 2_000 if FULL else 11_000):
        folder = tmp_path / f"{operation}{size}"
        with Library.create(folder, FINGERPRINT, dim=DIM) as library:
            fill(library, OLD)
            state = OLD
            if operation == "gc":
                fill(library, NEW)
                with library.transaction() as tx:
                    tx.remove_document("a")
                state = {"b": OLD["b"], **NEW}
            try:
                with files_no_longer_than(size):
                    if operation == "gc":
                        library.gc()
                    else:
                        fill(library, NEW)
                        state = {**OLD, **NEW}
                outcomes.add("done")
            except LibraryFull as e:
                assert "free some space" in str(e)
                outcomes.add("full")
            judge(library, folder, state, swept=False)  # the limit may hit the cleaning as well
            fill(library, {"again": ["word again"]})  # with room, work resumes
            judge(library, folder, {**state, "again": ["word again"]})
    assert outcomes == {"done", "full"}


def test_no_room_on_the_file_system(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    try:
        with Library.create(mount / "library", FINGERPRINT, dim=DIM) as library:
            fill(library, OLD)
            outcomes = set()
            for free in range(0, 200_000, 4_096 if FULL else 24_576):
                room = os.statvfs(mount)
                filler = mount / "library" / "filler"
                filler.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
                state = OLD
                try:
                    fill(library, NEW)
                    state = {**OLD, **NEW}
                    outcomes.add("done")
                except LibraryFull:
                    outcomes.add("full")
                judge(library, mount / "library", state)
                filler.unlink()
                with library.transaction() as tx:
                    tx.remove_document("c")
                library.gc()
            assert outcomes == {"done", "full"}
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=False)
