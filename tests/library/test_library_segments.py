"""Segment files: valid safetensors, immutable, checked on every read."""

from __future__ import annotations

import errno
import os
import resource
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from library_support import memory_of
from safetensors.torch import load_file

from sac_rag.errors import LibraryCorrupt, LibraryError
from sac_rag.library import folder as files
from sac_rag.library.codecs import get_codec, pack
from sac_rag.library.segments import Segment, SegmentInfo, SegmentWriter, Slot

IDS = [f"{i:012x}{i % 16:x}" + "0" * 19 for i in range(1, 6)]


def written(folder: Path, number: int = 7) -> tuple[SegmentInfo, list[Slot], list[bytes]]:
    writer, data = SegmentWriter(folder, number), []
    for passage_id in IDS:
        layout, chunks = pack(get_codec("bf16").encode(memory_of(passage_id)))
        writer.add(passage_id, layout, chunks)
        data.append(b"".join(chunks))
    info, slots = writer.finish()
    return info, slots, data


def test_other_tools_read_it_as_safetensors(tmp_path: Path) -> None:
    info, slots, _ = written(tmp_path)
    path = tmp_path / "seg-7.safetensors"
    assert os.listdir(tmp_path) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert info.size == path.stat().st_size == info.start + sum(s.length for s in slots)
    tensors = load_file(path)
    assert len(tensors) == 5 * len(IDS)
    for passage_id in IDS:
        expected = get_codec("bf16").encode(memory_of(passage_id))
        assert all(tensors[f"{passage_id}.{name}"].equal(t) for name, t in expected.items())


def test_reads_are_exact_and_outlive_the_file(tmp_path: Path) -> None:
    info, slots, data = written(tmp_path)
    segment = Segment(tmp_path, info)
    os.unlink(tmp_path / "seg-7.safetensors")
    for slot, expected in zip(slots, data, strict=True):
        segment.prefetch(slot)
        assert segment.read(slot) == expected
    assert segment.header_is_intact()


def test_slots_outside_the_data_are_refused(tmp_path: Path) -> None:
    info, slots, _ = written(tmp_path)
    segment = Segment(tmp_path, info)
    for change in (
        {"offset": 0}, {"offset": info.size}, {"length": info.size}, {"offset": -8}, {"length": -1},
        {"offset": 1 << 62}, {"offset": slots[0].offset + 1}, {"length": slots[0].length - 1}, {"xxh3": b"\0" * 16},
    ):  # fmt: skip
        slot = replace(slots[0], **change)  # type: ignore[arg-type]
        segment.prefetch(slot)
        with pytest.raises(LibraryCorrupt):
            segment.read(slot)


def test_a_file_cut_while_mapped_is_an_error_not_a_crash(tmp_path: Path) -> None:
    info, slots, _ = written(tmp_path)
    segment = Segment(tmp_path, info)
    os.truncate(tmp_path / "seg-7.safetensors", 100)
    with pytest.raises(LibraryCorrupt):
        segment.read(slots[0])


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "missing", "short"])
def test_only_a_regular_file_of_the_right_size_is_opened(tmp_path: Path, kind: str) -> None:
    info, _, _ = written(tmp_path)
    path = tmp_path / "seg-7.safetensors"
    moved = path.rename(tmp_path / "elsewhere")
    if kind == "symlink":
        path.symlink_to(moved)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "short":
        path.write_bytes(moved.read_bytes()[:-1])
    with pytest.raises(LibraryCorrupt):
        Segment(tmp_path, info)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> object:
        yield b"abc"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        files.write_durable(tmp_path, "faiss-1.idx", chunks())  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_layout_must_cover_the_bytes(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, 1)
    with pytest.raises(ValueError, match="covers 4 bytes"):
        writer.add("x", [("a", "F32", [1])], [b"12345"])
    writer.abort()


def test_sweep_spares_what_is_not_ours(tmp_path: Path) -> None:
    names = ["notes.txt", "seg-x.safetensors", "catalog.sqlite", "writer.lock", "seg-1.safetensors", "faiss-1.idx"]
    gone = ["seg-2.safetensors", "seg-3.safetensors.tmp", "faiss-2.idx.tmp", "spool-abc_1"]
    for name in names + gone:
        (tmp_path / name).touch()
    files.sweep(tmp_path, {"seg-1.safetensors", "faiss-1.idx"})
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_the_limit_on_open_files_is_raised_before_anything_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    limits, asked = [(64, 4096)], []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))

    def opened() -> str:
        asked.append(limits[-1][0])
        if limits[-1][0] < 100:
            raise OSError(errno.EMFILE, "too many")
        return "here"

    assert files.with_room(tmp_path, opened) == "here" and asked == [64, 4096]
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: (_ for _ in ()).throw(ValueError("no")))
    limits.append((64, 4096))
    with pytest.raises(LibraryError, match="run `sac gc`, which joins them, or raise `ulimit -n`"):
        files.with_room(tmp_path, opened)
