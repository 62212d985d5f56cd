"""Who writes: handles of one process take part, collected ones let go, others wait, children of a fork are told."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from library_support import DIM, FINGERPRINT, put

from sac_rag.errors import LibraryError, LibraryLocked, LibraryMismatch, SacError
from sac_rag.library.library import Library

ROOT = str(Path(__file__).parents[2])


def writer(folder: Path, **more: object) -> Library:
    return Library.open(folder, write=True, **more)  # type: ignore[arg-type]


def elsewhere(folder: Path, wait: float = 0.0) -> str:
    """What another process that wants to write is told; empty when it may."""
    code = (
        "import sys\nfrom sac_rag.library.library import Library\nfrom sac_rag.errors import LibraryLocked\n"
        f"try: Library.open({str(folder)!r}, write=True, wait={wait})\nexcept LibraryLocked as e: print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout


@pytest.fixture
def made(folder: Path) -> Path:
    Library.create(folder, FINGERPRINT, dim=DIM).close()
    return folder


def test_a_writer_that_nobody_refers_to_lets_go(made: Path) -> None:
    held = writer(made)
    del held
    gc.collect()
    assert elsewhere(made) == ""
    shared = [writer(made, share=True), writer(made, share=True)]
    shared[0].close()
    assert "is being written" in elsewhere(made)
    shared.pop()
    gc.collect()
    assert elsewhere(made) == "", "a handle that was closed before holds nothing"


def test_a_writer_in_a_failed_function_lets_go(made: Path) -> None:
    def broken() -> None:
        held = writer(made)
        with held.transaction() as tx:
            put(tx, held, "a", ["word a"])
            raise ValueError("of the caller")

    with pytest.raises(ValueError, match="of the caller"):
        broken()
    gc.collect()
    with writer(made) as again:
        assert again.documents() == [] and again.verify() == []


def test_handles_of_one_process_take_part(made: Path) -> None:
    one, two = writer(made, share=True), writer(made, share=True, fingerprint=FINGERPRINT)
    with pytest.raises(LibraryLocked, match="which is this one"):
        writer(made)
    with pytest.raises(LibraryMismatch, match="ratio"):
        writer(made, share=True, fingerprint={**FINGERPRINT, "ratio": 9.0})
    with one.transaction() as tx:
        put(tx, one, "a", ["word a"])
        with pytest.raises(LibraryError, match="open already"), two.transaction():
            pass
    assert [d.uri for d in two.documents()] == ["a"] and two.head == one.head
    two.close()
    for use in (two.documents, two.refresh, two.stats, lambda: two.transaction().__enter__()):
        with pytest.raises(LibraryError, match="open the library again|open for reading"):
            use()
    with one.transaction() as tx:
        put(tx, one, "b", ["word b"])
    one.close()
    assert elsewhere(made) == ""
    with writer(made, share=True) as again:
        assert [d.uri for d in again.documents()] == ["a", "b"]


def test_threads_that_open_at_once_become_one_writer(made: Path) -> None:
    opened: list[Library] = []
    gate = threading.Barrier(8)

    def work() -> None:
        gate.wait()
        opened.append(writer(made, share=True))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(opened) == 8 and len({id(library.writing) for library in opened}) == 1
    for library in opened[1:]:
        library.close()
    assert "is being written" in elsewhere(made)
    opened[0].close()


def test_a_writer_waits_for_another(made: Path) -> None:
    held = writer(made)
    with pytest.raises(LibraryLocked, match="which is this one"):
        writer(made, wait=0.3)
    threading.Timer(0.5, held.close).start()
    began = time.monotonic()
    with writer(made, wait=60.0) as mine:
        assert 0.3 < time.monotonic() - began < 30 and mine.writable
    with writer(made):
        assert "--wait" in elsewhere(made, wait=0.2)
    assert elsewhere(made, wait=0.2) == ""


def test_a_reader_that_was_closed_stays_closed(made: Path) -> None:
    reader = Library.open(made)
    reader.close()
    reader.close()
    for use in (reader.refresh, reader.documents, reader.stats, lambda: reader.holds("x")):
        with pytest.raises(LibraryError, match="open the library again"):
            use()


def child(body: Callable[[], object]) -> str:
    """What a forked child says of `body`: the name of an error and its words."""
    read, write = os.pipe()
    if not (pid := os.fork()):
        try:
            said = str(body())
        except SacError as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said[:2000].encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


def test_after_a_fork_what_was_open_says_so(made: Path) -> None:
    held, reader = writer(made, share=True), Library.open(made)
    for use in (held.documents, reader.documents, reader.refresh, held.gc):
        said = child(use)
        assert said.startswith("ProcessForked") and f"in process {os.getpid()}" in said and "spawn" in said
    assert child(lambda: Library.open(made).documents()) == "[]", "opened in the child, it is the child's"
    assert child(lambda: writer(made, share=True)).startswith("LibraryLocked"), "the parent writes"
    read, write = os.pipe()
    if not (pid := os.fork()):  # lives on while its parent lets go
        os.read(read, 1)
        os._exit(0)
    held.close()
    assert elsewhere(made) == "", "a child holds nothing of its parent's lock"
    os.write(write, b"x")
    os.waitpid(pid, 0)


def test_a_library_is_not_copied_by_halves(made: Path) -> None:
    with Library.open(made) as reader:
        for way in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                way(reader)
        assert reader.documents() == []
