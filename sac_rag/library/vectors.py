"""Dense search: exact cosine similarity over a flat FAISS index whose ids are the catalog's row keys.

FAISS proposes, float64 decides: candidates are scored again, row by row, so that scores and order do not depend on
instruction sets, thread counts or where a vector lies in the index.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from sac_rag.errors import LibraryCorrupt, LibraryError

_PARSING = threading.Lock()
"""Held while FAISS's limit on what it parses, one for the whole process, is that of a file."""
_SLACK = 1e-4
"""More than FAISS's float32 scores of unit vectors can be off."""


def normalise(vector: Any, dim: int, what: str) -> np.ndarray:
    """A float32 unit vector of shape (dim,); LibraryError on another shape, NaN, Inf or zero length."""
    v = np.asarray(vector, dtype=np.float64)
    if v.shape != (dim,):
        raise LibraryError(f"the vector of {what} has shape {v.shape}; this library holds vectors of shape ({dim},)")
    length = float(np.sqrt((v * v).sum()))
    if not np.isfinite(length) or length == 0.0:
        raise LibraryError(f"the vector of {what} has length {length}: cosine similarity needs a finite, non-zero one")
    return (v / length).astype(np.float32)


def cosines(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Inner products, float64, of rows (n, dim) with a vector (dim,), the same for a row wherever it stands."""
    products = rows.astype(np.float64) * vector.astype(np.float64)
    scores: np.ndarray = products.sum(axis=1)
    return scores


def _faiss() -> Any:
    """Imported when first needed; it has no type stubs."""
    import faiss

    return faiss


def marginal(vector: np.ndarray, rows: np.ndarray, k: int, weight: float) -> list[int]:
    """Which k of the rows (n, dim) are close to a vector (dim,) and unlike each other, in the order they are taken.

    The next one has the largest weight * cosine - (1 - weight) * its largest cosine to one that is taken; of equal ones
    the first.
    """
    if not 0 <= weight <= 1:
        raise LibraryError(f"the weight of closeness is {weight}; it lies in 0..1")
    taken: list[int] = []
    if not len(rows):
        return taken
    close, alike = cosines(rows, vector / max(float(np.linalg.norm(vector)), 1e-30)), np.zeros(len(rows))
    for _ in range(min(k, len(rows))):
        gain = weight * close - (1 - weight) * alike
        gain[taken] = -np.inf
        taken.append(int(gain.argmax()))
        nearest = cosines(rows, rows[taken[-1]])
        alike = nearest if len(taken) == 1 else np.maximum(alike, nearest)
    return taken


class VectorIndex:
    """Immutable from outside: `changed` gives a new index, so a search may go on in the old one."""

    def __init__(self, index: Any, dim: int) -> None:
        self._index, self.dim = index, dim

    @classmethod
    def build(cls, dim: int, keys: Collection[int], rows: Iterable[np.ndarray]) -> VectorIndex:
        """An index of unit vectors (dim,), one a key."""
        faiss = _faiss()
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        if keys:
            index.add_with_ids(np.stack(list(rows)), np.fromiter(keys, np.int64, len(keys)))
        return cls(index, dim)

    @classmethod
    def parse(cls, data: bytes, dim: int, count: int) -> VectorIndex:
        """From bytes of `serialize` whose hash the caller has checked; LibraryCorrupt if they are another index."""
        faiss = _faiss()
        with _PARSING:
            before = faiss.get_deserialization_vector_byte_limit()
            faiss.set_deserialization_vector_byte_limit(len(data) + 1024)
            try:
                index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
            except RuntimeError as e:
                raise LibraryCorrupt(f"the FAISS file does not parse: {str(e)[:200]}") from e
            finally:
                faiss.set_deserialization_vector_byte_limit(before)
        if not isinstance(index, faiss.IndexIDMap2) or (index.d, index.ntotal) != (dim, count):
            raise LibraryCorrupt(f"the FAISS file holds {index.ntotal} x {index.d} numbers instead of {count} x {dim}")
        return cls(index, dim)

    def changed(self, remove: Collection[int], add: Mapping[int, np.ndarray]) -> VectorIndex:
        """A copy without the keys in `remove` and with the unit vectors of `add`."""
        faiss = _faiss()
        copy = VectorIndex(faiss.clone_index(self._index), self.dim)
        gone = [*remove, *add]  # FAISS would accept an id twice
        if gone:
            copy._index.remove_ids(np.array(gone, np.int64))
        if add:
            copy._index.add_with_ids(np.stack(list(add.values())), np.fromiter(add, np.int64, len(add)))
        return copy

    def serialize(self) -> bytes:
        faiss = _faiss()
        data: bytes = faiss.serialize_index(self._index).tobytes()
        return data

    def keys(self) -> np.ndarray:
        """Row keys, int64, in index order."""
        faiss = _faiss()
        keys: np.ndarray = faiss.vector_to_array(self._index.id_map)
        return keys

    def rows(self, keys: Collection[int]) -> np.ndarray:
        """Stored unit vectors, float32 (n, dim), in the order of `keys`."""
        if not keys:
            return np.empty((0, self.dim), np.float32)
        rows: np.ndarray = self._index.reconstruct_batch(np.fromiter(keys, np.int64, len(keys)))
        return rows

    def search(self, vector: np.ndarray, k: int, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """(key, cosine) of the best k and of whatever ties with the k-th, unordered; only `allowed` keys, if given."""
        faiss = _faiss()
        total = self._index.ntotal if allowed is None else len(allowed)
        if not total:
            return []
        parameters, selector = None, None
        if allowed is not None:
            selector = faiss.IDSelectorBatch(np.fromiter(allowed, np.int64, len(allowed)))
            parameters = faiss.SearchParameters(sel=selector)
        fetch = k + 8
        while True:
            fetch = min(fetch, total)
            scores, found = self._index.search(vector[None], fetch, params=parameters)
            keys = found[0][found[0] >= 0]
            exact = cosines(self.rows(keys.tolist()), vector)
            if len(exact) <= k:
                break
            kth = np.partition(exact, len(exact) - k)[len(exact) - k]
            # What FAISS left out scores at most its last score: if that is clearly below the k-th, nothing is missed.
            if fetch == total or float(scores[0][fetch - 1]) < kth - _SLACK:
                keys, exact = keys[exact >= kth], exact[exact >= kth]
                break
            fetch *= 4
        return list(zip(keys.tolist(), exact.tolist(), strict=True))
