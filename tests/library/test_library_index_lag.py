"""The FAISS file of a large library is not written with every commit; what it lacks stands in the catalog."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from library_support import DIM, FINGERPRINT, check, fill, held, passages_of, vector_of

from sac_rag.library import lexical_file, schema, transaction
from sac_rag.library.library import Library
from sac_rag.library.vectors import VectorIndex
from sac_rag.records import Document

STATE = {f"d{i}": [f"word {i} {j}" for j in range(4)] for i in range(8)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction, "INDEX_AT_ONCE", 8)
    monkeypatch.setattr(transaction, "INDEX_LAG", 4)


@pytest.fixture
def filled(folder: Path) -> Path:
    with Library.create(folder, FINGERPRINT, dim=DIM) as library:
        fill(library, STATE)
    return folder


def by_brute_force(library: Library, query: np.ndarray, k: int) -> list[str]:
    ids = [p.id for p in library.passages()]
    rows = np.stack([vector_of(i) / np.linalg.norm(vector_of(i)) for i in ids]).astype(np.float32)
    scores = rows.astype(np.float64) @ (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    return [ids[i] for i in sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:k]]


def agrees(library: Library) -> None:
    for seed in range(6):
        query = np.random.default_rng(seed).normal(size=DIM)
        for k in (1, 5, 99):
            found = library.search(query, None, k, mode="dense")
            assert [h.passage.id for h in found] == by_brute_force(library, query, k)
        only = library.search(query, None, 3, mode="dense", where={"document": ["d2", "new"]})
        ranked = [i for i in by_brute_force(library, query, 99) if library.get([i])[0].document in ("d2", "new")]
        assert [h.passage.id for h in only] == ranked[:3]


def test_a_small_change_leaves_the_file_as_it_is_and_searches_see_it(filled: Path) -> None:
    state = dict(STATE)
    with Library.open(filled, write=True) as library:
        path = filled / f"faiss-{library.head.faiss}.idx"
        before = path.stat()
        fill(library, {"new": ["word new", "word newer"]})
        state["new"] = ["word new", "word newer"]
        with library.transaction() as tx:
            tx.remove_document("d3")
        del state["d3"]
        assert path.stat() == before and (filled / f"faiss-{library.head.faiss}.idx") == path
        assert library.head.changed == library.head.generation == 3 and library.head.faiss == 1
        for again in (library, Library.open(filled)):
            check(again, state)
            agrees(again)
            assert again.verify() == [] and again.head == library.head
    with Library.open(filled, write=True) as library:
        agrees(library)
        fill(library, {"d4": ["word 4 0", "word other"]})
        agrees(library)
        assert library.verify() == []
    with Library.open(filled) as reader:
        agrees(reader)


def test_another_vector_counts_at_once(filled: Path) -> None:
    passages, other = passages_of("d1", STATE["d1"]), vector_of("abcdef")
    with Library.open(filled, write=True) as library, library.transaction() as tx:
        tx.put(Document("d1", ""), passages, {}, {passages[2].id: other})
    with Library.open(filled) as library:
        assert library.head.faiss == 1
        best = library.search(other, None, 40, mode="dense")
        assert best[0].passage.id == passages[2].id and best[0].score == pytest.approx(1.0)
        assert len(best) == len({h.passage.id for h in best}) == 32
        assert library.verify() == []


def test_the_file_is_written_when_much_of_it_is_stale_or_it_is_small(filled: Path) -> None:
    written = []
    with Library.open(filled, write=True) as library:
        for n in range(12):
            fill(library, {f"new{n}": [f"word new {n}"]})
            written.append(library.head.faiss == library.head.generation)
            agrees(library)
        assert written.count(True) == 1 and written.index(True) == 10  # 11 of 43 passages
        with library.transaction() as tx:
            for uri in [*STATE, *(f"new{n}" for n in range(6))]:
                tx.remove_document(uri)
        assert library.head.faiss == library.head.generation and library.head.passages == 6
        fill(library, {"last": ["word"]})
        assert library.head.faiss == library.head.generation
        agrees(library)
        assert library.verify() == []


def test_gc_writes_the_file_and_erases_vectors(filled: Path) -> None:
    gone = [p.id for p in passages_of("d3", STATE["d3"])]
    traces = [(vector_of(i) / (vector_of(i) ** 2).sum() ** 0.5).astype("<f4").tobytes() for i in gone]
    with Library.open(filled, write=True) as library:
        with library.transaction() as tx:
            tx.remove_document("d3")
        assert any(t in f.read_bytes() for t in traces for f in filled.iterdir())
        library.gc()
        assert library.head.faiss == library.head.generation and library.verify() == []
        assert not any(t in f.read_bytes() for t in traces for f in filled.iterdir())
        generation = library.head.generation
        library.gc()
        assert library.head.generation == generation
        agrees(library)


def test_a_damaged_file_is_rebuilt_with_what_it_lacked(filled: Path) -> None:
    with Library.open(filled, write=True) as library:
        fill(library, {"new": ["word new"]})
    (filled / "faiss-1.idx").write_bytes(b"damaged")
    with Library.open(filled) as reader:
        agrees(reader)
        assert "rebuild" in reader.verify()[0]
    with Library.open(filled, write=True) as library:
        with library.transaction() as tx:
            tx.remove_document("d0")
        agrees(library)
        assert library.head.faiss == library.head.generation and library.verify() == []


def test_a_kept_lexical_index_goes_with_any_change(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_file, "KEPT_FROM", 4)
    Library.open(filled, write=True).close()
    assert os.listdir(filled).count("lexical-1.idx") == 1
    with Library.open(filled, write=True) as library:
        fill(library, {"new": ["heron"]})
        assert not list(filled.glob("lexical-*"))
        assert [h.passage.text for h in library.search(None, "heron", 3, mode="lexical")] == ["heron"]
    assert [f.name for f in filled.glob("lexical-*")] == ["lexical-2.idx"]
    with Library.open(filled) as reader:
        assert [h.passage.text for h in reader.search(None, "heron", 3, mode="lexical")] == ["heron"]
        assert reader.stats().lexical_bytes == (filled / "lexical-2.idx").stat().st_size and reader.verify() == []


def test_a_reader_keeps_its_vectors_while_a_writer_goes_on(filled: Path) -> None:
    with Library.open(filled, write=True) as library, Library.open(filled) as reader:
        fill(library, {"new": ["word new"]})
        with library.transaction() as tx:
            tx.remove_document("d5")
        assert held(reader) == STATE
        agrees(reader)
        assert reader.refresh()
        agrees(reader)
        assert "d5" not in held(reader)


def test_a_library_of_the_first_format_opens_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        patch.setattr(schema, "COLUMNS", {t: c for t, c in schema.COLUMNS.items() if t != "unindexed"})
        patch.setattr(transaction.Transaction, "unindexed", 0)
        patch.setattr(transaction, "INDEX_AT_ONCE", 10**9)
        execute = transaction.Catalog.execute
        patch.setattr(transaction.Catalog, "execute", lambda s, q, *a: None if "unindexed" in q else execute(s, q, *a))
        patch.setattr(transaction.Catalog, "unindexed", lambda self: [])
        with Library.create(folder, FINGERPRINT, dim=DIM) as library:
            fill(library, STATE)
    old = shutil.copytree(folder, tmp_path / "old")
    with Library.open(old) as reader:
        check(reader, STATE)
        assert reader.verify() == []
        assert reader.head.changed == 1
    assert (old / "catalog.sqlite").read_bytes() == (folder / "catalog.sqlite").read_bytes()
    with Library.open(old, write=True) as library:
        check(library, STATE)
        fill(library, {"new": ["word new"]})
        assert library.head.faiss == 1
        agrees(library)
        assert library.verify() == []


def test_an_index_over_changes_is_the_one_that_is_built_from_all() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, DIM))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    now = {key: rows[key] for key in range(200)}
    index = VectorIndex.build(DIM, list(now), list(now.values()))
    for _ in range(60):
        remove = set(rng.choice(list(now), size=3, replace=False).tolist())
        add = {int(key): rows[int(rng.integers(400))] for key in rng.integers(0, 400, size=4)} | {}
        index = index.changed(remove, add)
        now = {key: row for key, row in now.items() if key not in remove} | add
        fresh = VectorIndex.build(DIM, list(now), list(now.values()))
        assert index.count == len(now) and sorted(index.keys().tolist()) == sorted(now)
        assert np.array_equal(index.rows(sorted(now)), fresh.rows(sorted(now)))
        for k, allowed in ((1, None), (7, None), (500, None), (5, set(list(now)[::3]) | {9999})):
            query = rng.normal(size=DIM).astype(np.float32)
            assert sorted(index.search(query, k, allowed)) == sorted(fresh.search(query, k, allowed))
    assert np.array_equal(index.whole().rows(sorted(now)), fresh.rows(sorted(now)))
    again = VectorIndex.parse(index.serialize(), DIM, len(now))
    assert sorted(again.keys().tolist()) == sorted(now)
