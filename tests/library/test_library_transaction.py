"""Law 6 without violence: commit, rollback, delete, gc, two writers, a reader beside a writer, erasing."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from library_support import DIM, FINGERPRINT, check, fill, held, memory_of, passages_of, put, same, vector_of

from sac_rag.errors import LibraryError, LibraryLocked
from sac_rag.library.library import Library, Transaction
from sac_rag.library.view import View
from sac_rag.records import Document

STATE = {"a": ["word a1", "word a2", "word a3"], "b": ["word b1"], "c": ["word same", "word same", "word c3"]}


def test_what_is_put_is_there_after_reopening(library: Library, folder: Path) -> None:
    fill(library, STATE)
    check(library, STATE)
    assert library.verify() == []
    library.close()
    for write in (False, True):
        with Library.open(folder, fingerprint=FINGERPRINT, write=write) as again:
            check(again, STATE)
            assert again.verify() == []


def test_an_exception_leaves_no_trace(library: Library, folder: Path) -> None:
    fill(library, STATE)
    names = set(os.listdir(folder))
    with pytest.raises(RuntimeError, match="mine"), library.transaction() as tx:
        put(tx, library, "new", [f"word {i}" for i in range(30)])
        tx.remove_document("a")
        raise RuntimeError("mine")
    check(library, STATE)
    assert set(os.listdir(folder)) == names
    fill(library, {"new": ["word x"]})
    check(library, {**STATE, "new": ["word x"]})
    assert library.verify() == []


def test_reads_inside_a_transaction_see_the_last_commit(library: Library) -> None:
    fill(library, STATE)
    with library.transaction() as tx:
        tx.remove_document("a")
        put(tx, library, "d", ["word d"])
        check(library, STATE)
        with pytest.raises(LibraryError, match="open already"), library.transaction():
            pass
    check(library, {"b": STATE["b"], "c": STATE["c"], "d": ["word d"]})


def test_changes_within_one_transaction_add_up(library: Library) -> None:
    with library.transaction() as tx:
        put(tx, library, "a", ["word 1", "word 2"])
        passages = passages_of("a", ["word 2", "word 3"])
        new = passages[1].id
        tx.put(Document("a", ""), passages, {new: memory_of(new)}, {new: vector_of(new)})
        put(tx, library, "b", ["word gone"])
        tx.remove_document("b")
        put(tx, library, "b", ["word gone", "word stays"])
        put(tx, library, "b", ["word stays"])
    assert held(library) == {"a": ["word 2", "word 3"], "b": ["word stays"]}
    assert library.verify() == []
    assert library.gc().passages_moved == 3
    assert library.stats().dead_bytes == 0


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_a_stored_passage_may_be_given_another_vector(library: Library, folder: Path) -> None:
    fill(library, STATE)
    passages = passages_of("a", STATE["a"])
    (first, second, third), other = (p.id for p in passages), unit(vector_of("abcdef"))
    with library.transaction() as tx:
        tx.put(Document("a", ""), passages, {}, {second: other})
    with library.transaction() as tx:  # given and removed within one transaction
        tx.put(Document("a", ""), passages, {}, {third: other})
        tx.put(Document("a", ""), passages[:2], {}, {})
    state = {**STATE, "a": STATE["a"][:2]}
    for again in (library, Library.open(folder)):
        assert held(again) == state
        kept, changed = again.vectors([first, second])
        assert (float(kept @ unit(vector_of(first))), float(changed @ other)) == pytest.approx((1.0, 1.0))
        assert again.search(other, None, 9, mode="dense")[0].passage.id == second
        assert len(again.search(other, None, 9, mode="dense")) == 6
        assert again.verify() == []


def test_nothing_to_do_makes_no_generation(library: Library) -> None:
    fill(library, STATE)
    before = library.head.generation
    with library.transaction() as tx:
        tx.remove_document("unknown")
    assert library.head.generation == before
    library.gc()
    assert library.head.generation == before


def test_deletes_show_at_once_and_gc_gives_the_bytes_back(library: Library) -> None:
    fill(library, STATE)
    fill(library, {"d": ["word d"] * 3})
    gone = passages_of("a", STATE["a"])[1].id
    with library.transaction() as tx:
        put(tx, library, "a", ["word a1", "word a3"])
        assert tx.remove_document("c") == 3
    assert library.search(vector_of(gone), "a2", 20)[0].passage.id != gone
    with pytest.raises(LibraryError, match=gone):
        library.load([gone])
    assert [p.text for p in library.passages()] == ["word a1", "word a3", "word b1", "word d", "word d", "word d"]
    assert library.stats().dead_bytes > 0
    assert library.verify() == []
    expected = held(library)
    report = library.gc()
    assert report.bytes_after < report.bytes_before
    assert (report.segments_before, report.segments_after, report.passages_moved) == (2, 1, 6)
    assert library.stats().dead_bytes == 0
    assert held(library) == expected
    assert library.verify() == []
    assert library.gc().passages_moved == 0


def test_gc_passes_over_what_another_thread_removes_meanwhile(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(library, STATE)
    transaction, others = Library.transaction, ["a", "b"]

    def late(self: Library) -> contextlib.AbstractContextManager[Transaction]:
        if others:
            with transaction(self) as tx:
                tx.remove_document(others.pop())
        return transaction(self)

    monkeypatch.setattr(Library, "transaction", late)
    with library.transaction() as tx:  # after "b"
        put(tx, library, "d", ["word d"])
    assert library.gc().passages_moved == 4
    check(library, {"c": STATE["c"], "d": ["word d"]})
    assert library.verify() == []


def test_gc_min_dead_spares_segments_that_are_mostly_alive(folder: Path) -> None:
    with Library.create(folder, FINGERPRINT, dim=DIM, segment_bytes=3000) as library:
        fill(library, {f"d{i}": [f"word {i} {j}" for j in range(5)] for i in range(4)})
        assert len(library.stats().segments) > 2
        assert all(u.payload <= 3000 for u in library.stats().segments)
        with library.transaction() as tx:
            put(tx, library, "d0", [f"word 0 {j}" for j in range(1, 5)])
        assert library.gc(min_dead=0.9).passages_moved == 0
        assert library.stats().dead_bytes > 0
        library.gc()
        assert library.stats().dead_bytes == 0
        assert library.verify() == []
        with pytest.raises(LibraryError, match="min_dead"):
            library.gc(min_dead=1.0)
    with Library.open(folder, write=True) as library:  # with room, small segments join
        library.gc()
        assert len(library.stats().segments) == 1
        assert library.verify() == []


def test_a_passage_larger_than_a_segment_is_stored(folder: Path) -> None:
    with Library.create(folder, FINGERPRINT, dim=DIM, segment_bytes=10) as library:
        fill(library, STATE)
        assert len(library.stats().segments) == 7
        check(library, STATE)
        library.gc()
        assert library.verify() == []


def test_a_second_writer_is_told_who_writes(library: Library, folder: Path) -> None:
    with pytest.raises(LibraryLocked, match=f"process {os.getpid()}"):
        Library.open(folder, write=True)
    code = (
        "import sys\nfrom sac_rag.library.library import Library\nfrom sac_rag.errors import LibraryLocked\n"
        f"try: Library.open({str(folder)!r}, write=True)\nexcept LibraryLocked as e: print(e)\n"
    )
    root = str(Path(__file__).parents[2])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert f"process {os.getpid()}" in out.stdout, out.stderr
    with Library.open(folder) as reader:
        check(reader, {})
    fill(library, STATE)
    library.close()
    Library.open(folder, write=True).close()


def test_a_folder_without_locks_is_no_busy_library(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.close()

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(LibraryError, match=r"writer\.lock: No locks available; .*file system") as refused:
        Library.open(library.path, write=True)
    assert not isinstance(refused.value, LibraryLocked)


def test_a_transaction_that_outlives_its_writer_is_not_committed(library: Library, folder: Path) -> None:
    fill(library, STATE)
    new = folder / "seg-99.safetensors"
    with pytest.raises(LibraryError, match="closed; open the library again"), library.transaction() as tx:
        put(tx, library, "late", ["word late"])
        library.close()
        Library.open(folder, write=True).close()  # sweeps what no commit refers to
        new.write_bytes(b"of the next writer, before its commit")
    assert new.exists()
    with Library.open(folder, write=True) as again:
        check(again, STATE)
        assert again.verify() == []


def test_closing_waits_for_a_commit_under_way(library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave() -> None:
        with contextlib.suppress(KeyboardInterrupt), library:
            raise KeyboardInterrupt

    closing, commit = threading.Thread(target=leave), Transaction.commit

    def slow(self: Transaction) -> View | None:
        closing.start()
        closing.join(0.2)
        with pytest.raises(LibraryLocked):
            Library.open(folder, write=True)
        return commit(self)

    monkeypatch.setattr(Transaction, "commit", slow)
    fill(library, STATE)
    closing.join()
    with Library.open(folder, write=True) as again:
        check(again, STATE)


def test_a_reader_keeps_its_generation_through_deletes_and_gc(library: Library, folder: Path) -> None:
    fill(library, STATE)
    with Library.open(folder) as reader:
        fill(library, {"a": ["word other"], "d": ["word d"]})
        with library.transaction() as tx:
            tx.remove_document("b")
        library.gc()
        check(reader, STATE)  # texts, vectors and KV of files that are gone by now
        assert reader.head.generation < library.head.generation
        assert reader.refresh()
        assert not reader.refresh()
        check(reader, {"a": ["word other"], "c": STATE["c"], "d": ["word d"]})


def test_readers_beside_a_writer_see_whole_generations_only(library: Library, folder: Path) -> None:
    """Every commit replaces all texts by those of one round: a mixture would show."""
    stop, seen, failures = threading.Event(), [0], []

    def state(n: int) -> dict[str, list[str]]:
        return {f"d{i}": [f"word {n} {j}" for j in range(1 + (n + i) % 3)] for i in range(3)}

    def read() -> None:
        try:
            with Library.open(folder) as reader:
                while not stop.is_set():
                    reader.refresh()
                    texts = held(reader)
                    n = int(texts["d0"][0].split()[1])
                    assert texts == state(n)
                    ids = [p.id for p in reader.passages()]
                    assert all(same(kv, memory_of(i)) for i, kv in zip(ids, reader.load(ids), strict=True))
                    assert len(reader.search(vector_of(ids[0]), "word", 99)) == len(ids)
                    seen[0] += 1
        except BaseException as e:
            failures.append(e)

    fill(library, state(0))
    threads = [threading.Thread(target=read) for _ in range(2)]
    for t in threads:
        t.start()
    for n in range(1, 25):
        fill(library, state(n))
        if n % 6 == 0:
            library.gc()
    stop.set()
    for t in threads:
        t.join()
    assert failures == []
    assert seen[0] >= 2


def test_one_library_may_be_shared_by_threads(library: Library) -> None:
    fill(library, {f"d{i}": [f"word {i} {j}" for j in range(6)] for i in range(6)})
    ids = [p.id for p in library.passages()]
    failures: list[BaseException] = []

    def read(offset: int) -> None:
        try:
            for n in range(12):
                own = ids[(offset * 7 + n) % len(ids)]
                assert library.search(vector_of(own), "word", 3, mode="dense")[0].passage.id == own
                assert len(library.search(vector_of(own), "word", 60)) in (len(ids), len(ids) + 1)
                assert same(library.load([own])[0], memory_of(own))
                assert library.get([own])[0].id == own
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for n in range(4):
        fill(library, {"d0": [f"word 0 {j}" for j in range(6)], "x": [f"word {n}"]})
        with library.transaction() as tx:
            tx.remove_document("x")
    for t in threads:
        t.join()
    assert failures == []


def test_deleted_text_vectors_and_memories_are_erased_by_gc(library: Library, folder: Path) -> None:
    secret = "CANARY-7391-" + "classified " * 20
    ids = [p.id for p in passages_of("secret://CANARY-uri", [secret + str(i) for i in range(9)])]
    with library.transaction() as tx:
        put(tx, library, "a", ["word a1", "word a2"])
        put(tx, library, "secret://CANARY-uri", [secret + str(i) for i in range(9)], {"owner": "CANARY-owner"})
        put(tx, library, "b", ["word b"])
    traces = [b"CANARY", *(i.encode() for i in ids)]
    for i in ids:
        traces += [memory_of(i).keys.reshape(-1)[:16].view(dtype=torch.uint8).numpy().tobytes()]
        unit = vector_of(i) / (vector_of(i) ** 2).sum() ** 0.5
        traces += [unit.astype("<f4").tobytes()[:12]]

    def left() -> list[bytes]:
        everything = b"".join(f.read_bytes() for f in folder.iterdir())
        return [t for t in traces if t in everything]

    assert len(left()) > 0.9 * len(traces)
    with library.transaction() as tx:
        tx.remove_document("secret://CANARY-uri")
    catalog = (folder / "catalog.sqlite").read_bytes()
    assert b"CANARY" not in catalog  # zeroed at once
    library.gc()
    assert left() == []
    check(library, {"a": ["word a1", "word a2"], "b": ["word b"]})
    assert library.verify() == []


def test_stats_count_what_is_on_disk(library: Library, folder: Path) -> None:
    fill(library, STATE)
    stats = library.stats()
    memories = [memory_of(p.id) for uri in STATE for p in passages_of(uri, STATE[uri])]
    assert stats.anchors == sum(m.anchors for m in memories)
    assert stats.source_tokens == sum(m.source_len for m in memories)
    assert stats.kv_bytes == sum(m.nbytes + 2 * m.positions.numel() + 2 * m.counts.numel() + 4 for m in memories)
    files = [f for f in folder.iterdir() if f.name != "writer.lock"]
    assert stats.total_bytes == sum(f.stat().st_size for f in files)
    assert stats.bytes_per_source_token == stats.total_bytes / stats.source_tokens
