"""A library's codec: what a fitted one needs is stored in the library, and memories change codec in one commit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from library_support import memory_of, passages_of, vector_of

from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError
from sac_rag.library.basis import Basis
from sac_rag.library.codecs import get_codec
from sac_rag.library.library import Library
from sac_rag.records import Document

TEXTS = ["word one", "word two", "word three", "word four"]
PASSAGES = passages_of("d", TEXTS)
MEMORIES = {p.id: memory_of(p.id, torch.float32) for p in PASSAGES}


@pytest.fixture(scope="module")
def state() -> bytes:
    return Basis.fit(MEMORIES.values(), step=0.05).to_bytes()


def filled(folder: Path, codec: str, state: bytes | None = None) -> None:
    with Library.create(folder, {}, codec=codec, codec_state=state, dim=8) as library, library.transaction() as tx:
        tx.put(Document("d", ""), PASSAGES, MEMORIES, {p.id: vector_of(p.id) for p in PASSAGES})


def same_as(codec: str, state: bytes | None, library: Library, via: str | None = None) -> bool:
    """Whether memories are what the codec makes of them, or of what `via` made of them before."""
    for passage, loaded in zip(PASSAGES, library.load([p.id for p in PASSAGES]), strict=True):
        memory = MEMORIES[passage.id]
        for name in (via, codec):
            if name:
                made = get_codec(name, state)
                memory = made.decode(made.encode(memory))
        if not (torch.equal(loaded.keys, memory.keys) and torch.equal(loaded.values, memory.values)):
            return False
    return True


def test_a_library_keeps_what_its_codec_was_fitted_to(folder: Path, state: bytes) -> None:
    filled(folder, "transform", state)
    with Library.open(folder) as library:
        assert library.head.codec == "transform" and same_as("transform", state, library)
        assert library.verify() == []
    with Library.open(folder, write=True) as library:
        with library.transaction() as tx:
            tx.remove_document("d")
        library.gc()
        assert library.verify() == []
    with pytest.raises(ConfigError, match="fitted"):
        Library.create(folder.parent / "b", {}, codec="transform", dim=8)
    assert not (folder.parent / "b").exists()


@pytest.mark.parametrize(("before", "after"), [("bf16", "transform"), ("int8", "int4"), ("int8", "bf16")])
def test_recoding_is_one_commit_and_survives_reopening(folder: Path, state: bytes, before: str, after: str) -> None:
    filled(folder, before, state)
    reader = Library.open(folder)
    with Library.open(folder, write=True) as library:
        counts: list[int] = []
        with library.transaction() as tx:
            assert tx.recode(after, state, counts.append) == len(TEXTS)
        assert counts == [1, 2, 3, 4]
        assert library.head.codec == after and same_as(after, state, library, via=before)
        assert library.verify() == [] and library.stats().dead_bytes == 0
        with library.transaction() as tx:
            tx.put(Document("e", ""), *new_document())
    with Library.open(folder) as library:
        assert library.head.codec == after and same_as(after, state, library, via=before)
        assert library.load([p.id for p in new_document()[0]])[0].keys.shape == MEMORIES[PASSAGES[0].id].keys.shape
    assert same_as(before, state, reader), "a reader from before keeps what it saw"
    reader.close()


def new_document():
    passages = passages_of("e", ["another word"])
    memories = {p.id: memory_of(p.id, torch.float32) for p in passages}
    return passages, memories, {p.id: vector_of(p.id) for p in passages}


def test_what_a_fitted_codec_left_out_is_not_made_up(folder: Path, state: bytes) -> None:
    filled(folder, "transform", state)
    with Library.open(folder, write=True) as library:
        for codec in ("bf16", "int8", "int4"):
            with pytest.raises(LibraryError, match=f"--codec {codec}"), library.transaction() as tx:
                tx.recode(codec)
        assert library.head.codec == "transform" and same_as("transform", state, library) and library.verify() == []


def test_what_fails_leaves_the_library_as_it_was(folder: Path, state: bytes) -> None:
    filled(folder, "bf16")
    with Library.open(folder, write=True) as library:
        for codec, given, error in (
            ("bf16", None, LibraryError), ("transform", None, ConfigError), ("no", None, ConfigError),
            ("transform", b"x", LibraryCorrupt),
        ):  # fmt: skip
            with pytest.raises(error), library.transaction() as tx:
                tx.recode(codec, given)

        def stop(count: int) -> None:
            if count == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), library.transaction() as tx:
            tx.recode("transform", state, stop)
        assert library.head.codec == "bf16" and same_as("bf16", None, library) and library.verify() == []


def test_a_kill_while_recoding_loses_nothing(folder: Path, state: bytes) -> None:
    filled(folder, "bf16")
    (folder.parent / "state").write_bytes(state)
    script = """
import os, signal, sys
from pathlib import Path
from sac_rag.library.library import Library
library = Library.open(sys.argv[1], write=True)
with library.transaction() as tx:
    tx.recode("transform", Path(sys.argv[2]).read_bytes())
    tx.prepare()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", script, str(folder), str(folder.parent / "state")]
    assert subprocess.run(command).returncode == -9
    with Library.open(folder, write=True) as library:
        assert library.head.codec == "bf16" and same_as("bf16", None, library) and library.verify() == []


def test_a_damaged_state_is_named(folder: Path, state: bytes) -> None:
    import sqlite3

    filled(folder, "transform", state)
    with sqlite3.connect(folder / "catalog.sqlite") as catalog:
        catalog.execute("UPDATE codec_state SET state = zeroblob(100)")
    with pytest.raises(LibraryCorrupt, match="codec_state.*checksum"):
        Library.open(folder)
