"""The approximate dense index: what it finds has exact scores, it finds most of what there is, and it may be undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from library_support import FINGERPRINT, fill, vector_of

from sac_rag.errors import ConfigError, LibraryCorrupt
from sac_rag.library import vectors
from sac_rag.library.library import Library
from sac_rag.library.vectors import VectorIndex, cosines, kind_of

COUNT, DIM = 1200, 8
STATE = {f"doc{d}": [f"words of {d} and {i}" for i in range(20)] for d in range(COUNT // 20)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LEAST_APPROXIMATE", 300)
    monkeypatch.setattr(vectors, "APPROXIMATE_FROM", 600)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    with Library.create(tmp_path / "library", FINGERPRINT, dim=DIM) as library:
        fill(library, STATE)
        library.gc(dense="auto")
        assert library._view.vectors().kind == "approximate"
    return tmp_path / "library"


def everything(library: Library) -> dict[str, np.ndarray]:
    rows = {p.id: vector_of(p.id) for p in library.passages()}
    return {i: (v / np.linalg.norm(v)).astype(np.float32) for i, v in rows.items()}


def found(library: Library, query: np.ndarray, k: int = 10, **how) -> dict[str, float]:
    return {h.passage.id: h.dense for h in library.search(query, None, k, mode="dense", **how)}


def share(library: Library, **how) -> float:
    """Of the best ten of each of forty questions, how many are found; scores of all that is found are exact."""
    rows, rng, hits = everything(library), np.random.default_rng(1), 0
    for _ in range(40):
        query = rng.normal(size=DIM)
        unit = (query / np.linalg.norm(query)).astype(np.float32)
        scores = dict(zip(rows, cosines(np.stack(list(rows.values())), unit).tolist(), strict=True))
        got = found(library, query, **how)
        assert len(got) == 10 and all(score == scores[i] for i, score in got.items())
        hits += len(got.keys() & set(sorted(scores, key=scores.get)[-10:]))
    return hits / 400


def test_it_finds_nearly_all_with_exact_scores(library: Path) -> None:
    with Library.open(library) as opened:
        assert share(opened) >= 0.9
        assert opened.verify() == []


def test_it_changes_with_the_library(library: Path) -> None:
    with Library.open(library, write=True) as opened:
        gone = opened.passage_ids("doc3")
        with opened.transaction() as tx:
            tx.remove_document("doc3")
        fill(opened, {"new": [f"new words {i}" for i in range(200)]})
        assert opened.verify() == [] and share(opened) >= 0.9
    with Library.open(library) as opened:
        assert opened._view.vectors().kind == "approximate" and opened.head.passages == COUNT + 180
        assert not found(opened, vector_of(gone[0]), 50).keys() & set(gone)
        mine = opened.passage_ids("new")[5]
        assert next(iter(found(opened, vector_of(mine), 1))) == mine
        where = {"document": "new"}
        only = found(opened, vector_of(mine), 30, where=where)
        assert len(only) == 30 and only.keys() <= set(opened.passage_ids("new"))


def test_it_becomes_exact_again(library: Path) -> None:
    with Library.open(library, write=True) as opened:
        opened.gc()
        assert opened._view.vectors().kind == "approximate"
        opened.gc(dense="exact")
        assert opened._view.vectors().kind == "exact"
    with Library.open(library) as opened:
        assert opened._view.vectors().kind == "exact" and share(opened) == 1.0 and opened.verify() == []


def test_a_lost_file_is_searched_exactly(library: Path) -> None:
    (file,) = library.glob("faiss-*.idx")
    file.write_bytes(file.read_bytes()[:-1])
    with Library.open(library) as opened:
        assert opened._view.vectors().kind == "exact" and share(opened) == 1.0


def test_what_was_removed_since_is_not_found(library: Path) -> None:
    """A reader of before asks the catalog of now for vectors."""
    with Library.open(library) as reader:
        gone = reader.passage_ids("doc7")
        with Library.open(library, write=True) as opened, opened.transaction() as tx:
            tx.remove_document("doc7")
        assert not found(reader, vector_of(gone[0]), 50).keys() & set(gone)


def test_kinds_by_name() -> None:
    assert [kind_of("auto", n) for n in (0, 599, 600)] == ["exact", "exact", "approximate"]
    assert kind_of("exact", 10**9) == "exact" and kind_of("approximate", 300) == "approximate"
    with pytest.raises(ConfigError, match="needs 300 vectors to be fitted to, and there are 299"):
        kind_of("approximate", 299)
    with pytest.raises(ConfigError, match="use exact, approximate, auto"):
        kind_of("flat", 10)


def test_a_refused_kind_changes_nothing(library: Path) -> None:
    with Library.open(library, write=True) as opened:
        before = opened.head
        with pytest.raises(ConfigError):
            opened.gc(dense="hnsw")
        assert opened.head == before


def test_files_of_others_are_no_index(library: Path) -> None:
    import faiss

    rows = np.random.default_rng(0).normal(size=(400, DIM)).astype(np.float32)
    sound = VectorIndex.build(DIM, range(400), rows, "approximate", lambda keys: {}).serialize()
    assert VectorIndex.parse(sound, DIM, 400).kind == "approximate"

    def l2() -> faiss.Index:
        return faiss.IndexIVFPQ(faiss.IndexFlatL2(DIM), DIM, 4, 1, 8)

    def graph() -> faiss.Index:
        return faiss.IndexIVFPQ(faiss.IndexHNSWFlat(DIM, 4, faiss.METRIC_INNER_PRODUCT), DIM, 4, 1, 8, 0)

    def flat() -> faiss.Index:
        return faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, 4, faiss.METRIC_INNER_PRODUCT)

    for make in (l2, graph, flat):
        index = make()
        index.train(rows)
        index.add(rows)
        data = faiss.serialize_index(index).tobytes()
        with pytest.raises(LibraryCorrupt, match="the FAISS file holds"):
            VectorIndex.parse(data, DIM, 400)
    for at in range(0, len(sound), 97):
        for bad in (sound[:at], sound[:at] + b"\xff" * 8 + sound[at + 8 :]):
            try:
                index = VectorIndex.parse(bad, DIM, 400, lambda keys: {})
                index.search(rows[0], 5)
            except LibraryCorrupt:
                continue
