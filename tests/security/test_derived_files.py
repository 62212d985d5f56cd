"""Search indexes with right hashes and other content: not believed, named by verify, healed by gc."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from forgery import STATE
from library_support import DIM, FINGERPRINT, check, fill, vector_of
from safetensors.numpy import load, save
from test_foreign_catalog import rewritten

from sac_rag.errors import LibraryCorrupt, LibraryError
from sac_rag.library import lexical_file
from sac_rag.library.library import Library
from sac_rag.library.vectors import VectorIndex, normalise

Arrays = dict[str, np.ndarray]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lexical file of a library of STATE at tmp_path / "library"."""
    monkeypatch.setattr(lexical_file, "KEPT_FROM", 1)
    path = tmp_path / "library"
    with Library.create(path, FINGERPRINT, dim=DIM) as library:
        fill(library, STATE)
    (file,) = path.glob("lexical-*.idx")
    return file


def forge(kept: Path, data: bytes) -> None:
    with Library.open(kept.parent) as library:
        kept.write_bytes(lexical_file._digest(library.head, data) + data)


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


FORGERIES: dict[str, Callable[[Arrays], Arrays]] = {
    "no arrays": lambda arrays: {},
    "no keys": lambda arrays: {n: a for n, a in arrays.items() if n != "keys"},
    "no scores": lambda arrays: {n: a for n, a in arrays.items() if n != "data"},
    "more": lambda arrays: {**arrays, "more": np.zeros(3)},
    "other keys": with_array("keys", lambda a: a + 1),
    "fewer keys": with_array("keys", lambda a: a[:1]),
    "keys of floats": with_array("keys", lambda a: a.astype(np.float64)),
    "rows beyond": with_array("indices", lambda a: a + 1000),
    "rows below": with_array("indices", lambda a: a - 1000),
    "fewer rows": with_array("indices", lambda a: a[:-1]),
    "bounds": with_array("indptr", lambda a: a[::-1].copy()),
    "fewer bounds": with_array("indptr", lambda a: a[:-1]),
    "bounds beyond": with_array("indptr", lambda a: a * 5),
    "nan": with_array("data", lambda a: a * np.nan),
    "scores of numbers": with_array("data", lambda a: a.astype(np.int32)),
    "two dimensions": with_array("data", lambda a: a[None]),
    "no text": with_array("vocabulary", lambda a: a * 0 + 255),
    "one term": with_array("vocabulary", lambda a: a[:2]),
    "terms twice": with_array("vocabulary", lambda a: np.frombuffer(b"word\n" * 30 + b"word", np.uint8)),
    "empty": with_array("vocabulary", lambda a: a[:0]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_lexical_files_with_right_hashes(kept: Path, name: str) -> None:
    good, folder = kept.read_bytes(), kept.parent
    forge(kept, save(FORGERIES[name](load(good[16:]))))
    with Library.open(folder) as library:
        check(library, STATE)
        assert [line for line in library.verify() if kept.name in line] != []
    with Library.open(folder, write=True) as library:
        library.gc()
    (healed,) = folder.glob("lexical-*.idx")
    assert healed.read_bytes()[16:] == good[16:]
    with Library.open(folder) as library:
        assert library.verify() == []
        check(library, STATE)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (1 << 62).to_bytes(8, "little") + b"{}", b"\x80\x04garbage"])
def test_lexical_files_that_are_no_arrays(kept: Path, data: bytes) -> None:
    forge(kept, data)
    with Library.open(kept.parent, write=True) as library:
        check(library, STATE)
        library.gc()
    assert Library.open(kept.parent).verify() == []


def test_other_scores_are_noticed_and_healed(kept: Path) -> None:
    """Nothing is wrong with such a file but what it says."""
    good = kept.read_bytes()
    arrays = load(good[16:])
    forge(kept, save({**arrays, "data": arrays["data"][::-1].copy()}))
    with Library.open(kept.parent) as library:
        assert [line for line in library.verify() if "not what the text makes" in line] != []
        assert library.verify(deep=False) == []
    with Library.open(kept.parent, write=True) as library:
        library.gc()
        assert not any(kept.parent.glob("lexical-*.idx"))  # written when the writer closes
    assert Library.open(kept.parent).verify() == []
    (healed,) = kept.parent.glob("lexical-*.idx")
    assert healed.read_bytes()[16:] == good[16:]


@pytest.mark.parametrize("name", ["faiss-1.idx", "lexical-1.idx"])
def test_files_without_end_are_not_read(kept: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(kept.parent / name, 1 << 40)
    with Library.open(kept.parent) as library:
        check(library, STATE)
        assert name in " ".join(library.verify())
    with Library.open(kept.parent, write=True) as library:
        library.gc()
    with Library.open(kept.parent) as library:
        assert library.verify() == []


def forged_faiss(folder: Path, keys: list[int], dim: int = DIM) -> None:
    rows = [normalise(vector_of(f"{key:032x}", dim), dim, "x") for key in keys]
    data = VectorIndex.build(dim, keys, rows).serialize()
    (folder / "faiss-1.idx").write_bytes(data)
    rewritten(folder, "head", faiss_hash=xxhash.xxh3_128_digest(data))


@pytest.mark.parametrize(
    ("keys", "dim"), [([7, 8, 9], DIM), ([1, 1, 1], DIM), ([1, 2, 3], DIM + 1), ([1, 2], DIM), ([-1, 2**62, 0], DIM)]
)
def test_faiss_files_with_right_hashes(folder: Path, keys: list[int], dim: int) -> None:
    forged_faiss(folder, keys, dim)
    with Library.open(folder) as library:
        for mode, least in (("dense", None), ("hybrid", None), ("lexical", -1.0)):
            try:
                found = library.search(vector_of("0" * 32), "word", 3, mode=mode, min_score=least)
            except LibraryCorrupt:
                continue
            assert {hit.passage.document for hit in found} <= set(STATE)
        assert library.verify() != []


def test_faiss_files_of_another_kind(folder: Path) -> None:
    import faiss

    vectors = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)
    for made in (faiss.IndexFlatIP(DIM), faiss.IndexHNSWFlat(DIM, 4), faiss.IndexLSH(DIM, 8)):
        made.add(vectors)
        data = faiss.serialize_index(made).tobytes()[:200]
        (folder / "faiss-1.idx").write_bytes(data)
        rewritten(folder, "head", faiss_hash=xxhash.xxh3_128_digest(data))
        with Library.open(folder) as library, pytest.raises(LibraryError):
            library.search(vector_of("0" * 32), None, 3, mode="dense")


def test_more_vectors_than_the_file_has(folder: Path) -> None:
    with sqlite3.connect(folder / "catalog.sqlite") as db:
        assert db.execute("SELECT count(*) FROM vectors").fetchone() == (3,)
    rewritten(folder, "vectors", vector=b"\0" * 5)
    (folder / "faiss-1.idx").unlink()
    with pytest.raises(LibraryCorrupt, match="5 bytes instead of"):
        Library.open(folder)
