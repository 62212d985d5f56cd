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
    """Immutable from outside: `changed` gives a new index, so a search may go on in the old one.

    A large FAISS index, shared by many generations, and over it what has changed since: `recent` vectors, searched one
    by one, and keys that are `gone`. So a change costs what it changes, and the FAISS index is parsed at first use.
    """

    def __init__(
        self,
        base: _Base,
        dim: int,
        recent: Mapping[int, np.ndarray] | None = None,
        gone: frozenset[int] = frozenset(),
    ) -> None:
        """gone: keys whose row in `base`, if there is one, does not count."""
        self._base, self.dim = base, dim
        self._recent, self._gone = dict(recent or {}), gone

    @classmethod
    def build(cls, dim: int, keys: Collection[int], rows: Iterable[np.ndarray]) -> VectorIndex:
        """An index of unit vectors (dim,), one a key."""
        faiss = _faiss()
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        if keys:
            index.add_with_ids(np.stack(list(rows)), np.fromiter(keys, np.int64, len(keys)))
        return cls(_Base(index), dim)

    @classmethod
    def parse(cls, data: bytes, dim: int, count: int | None = None) -> VectorIndex:
        """From bytes of `serialize` whose hash the caller has checked; LibraryCorrupt, at first use where `count` is
        None, if they are another index."""
        made = cls(_Base(data, dim), dim)
        if count is not None and made.count != count:
            raise LibraryCorrupt(f"the FAISS file holds {made.count} vectors instead of {count}")
        return made

    def changed(self, remove: Collection[int], add: Mapping[int, np.ndarray]) -> VectorIndex:
        """An index without the keys in `remove` and with the unit vectors of `add`."""
        recent = {key: row for key, row in self._recent.items() if key not in remove}
        return VectorIndex(self._base, self.dim, {**recent, **add}, self._gone.union(remove, add))

    def whole(self) -> VectorIndex:
        """The same vectors, all of them in the FAISS index."""
        if not self._recent and not self._gone:
            return self
        faiss = _faiss()
        copy = faiss.clone_index(self._base.index())
        if self._gone:
            copy.remove_ids(np.fromiter(self._gone, np.int64, len(self._gone)))
        if self._recent:
            copy.add_with_ids(np.stack(list(self._recent.values())), self._recent_keys())
        return VectorIndex(_Base(copy), self.dim)

    def serialize(self) -> bytes:
        faiss = _faiss()
        data: bytes = faiss.serialize_index(self.whole()._base.index()).tobytes()
        return data

    @property
    def count(self) -> int:
        return len(self._base.keys()) - len(self._hidden()) + len(self._recent)

    def keys(self) -> np.ndarray:
        """Row keys, int64, in index order."""
        keys = self._base.keys()
        if self._gone:
            keys = keys[~np.isin(keys, np.fromiter(self._gone, np.int64, len(self._gone)))]
        return np.concatenate([keys, self._recent_keys()])

    def held(self, keys: Iterable[int]) -> list[int]:
        """Those of the keys that have a vector here."""
        base = self._base.key_set()
        return [key for key in keys if key in self._recent or (key in base and key not in self._gone)]

    def rows(self, keys: Collection[int]) -> np.ndarray:
        """Stored unit vectors, float32 (n, dim), in the order of `keys`."""
        out = np.empty((len(keys), self.dim), np.float32)
        old = []
        for at, key in enumerate(keys):
            if (row := self._recent.get(key)) is not None:
                out[at] = row
            else:
                old.append((at, key))
        if old:
            places, asked = zip(*old, strict=True)
            try:
                out[list(places)] = self._base.index().reconstruct_batch(np.array(asked, np.int64))
            except RuntimeError as e:
                raise LibraryCorrupt(f"the FAISS file lacks vectors that the catalog has: {str(e)[:200]}") from e
        return out

    def search(self, vector: np.ndarray, k: int, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """(key, cosine) of the best k and of whatever ties with the k-th, unordered; only `allowed` keys, if given."""
        found = self._search_base(vector, k, allowed)
        recent = [key for key in self._recent if allowed is None or key in allowed]
        if recent:
            found += zip(recent, cosines(self.rows(recent), vector).tolist(), strict=True)
        if len(found) <= k:
            return found
        kth = sorted((score for _, score in found), reverse=True)[k - 1]
        return [(key, score) for key, score in found if score >= kth]

    def _search_base(self, vector: np.ndarray, k: int, allowed: Collection[int] | None) -> list[tuple[int, float]]:
        faiss = _faiss()
        parameters, selector, base = None, None, self._base.index()
        if allowed is not None:
            left = [key for key in allowed if key not in self._gone and key not in self._recent]
            total = len(left)
            selector = faiss.IDSelectorBatch(np.array(left, np.int64))
        else:
            total = base.ntotal - len(self._hidden())
            if self._gone:
                inner = faiss.IDSelectorBatch(np.fromiter(self._gone, np.int64, len(self._gone)))
                selector = faiss.IDSelectorNot(inner)
        if not total:
            return []
        if selector is not None:
            parameters = faiss.SearchParameters(sel=selector)
        fetch = k + 8
        while True:
            fetch = min(fetch, total)
            scores, found = base.search(vector[None], fetch, params=parameters)
            keys = found[0][found[0] >= 0]
            exact = cosines(base.reconstruct_batch(keys) if len(keys) else np.empty((0, self.dim)), vector)
            if len(exact) <= k:
                break
            kth = np.partition(exact, len(exact) - k)[len(exact) - k]
            # What FAISS left out scores at most its last score: if that is clearly below the k-th, nothing is missed.
            if fetch == total or float(scores[0][fetch - 1]) < kth - _SLACK:
                keys, exact = keys[exact >= kth], exact[exact >= kth]
                break
            fetch *= 4
        return list(zip(keys.tolist(), exact.tolist(), strict=True))

    def _hidden(self) -> frozenset[int]:
        """Those of the keys gone that the FAISS index has."""
        return self._gone & self._base.key_set() if self._gone else self._gone

    def _recent_keys(self) -> np.ndarray:
        return np.fromiter(self._recent, np.int64, len(self._recent))


class _Base:
    """A FAISS index, made or to be parsed at first use, whichever thread comes first."""

    def __init__(self, index: Any, dim: int = 0) -> None:
        """index: of FAISS, or its bytes, with the `dim` that it must have."""
        self._index, self._dim = index, dim
        self._keys: frozenset[int] | None = None
        self._lock = threading.Lock()

    def index(self) -> Any:
        with self._lock:
            if isinstance(self._index, bytes):
                self._index = _parsed(self._index, self._dim)
            return self._index

    def keys(self) -> np.ndarray:
        """int64, in index order."""
        keys: np.ndarray = _faiss().vector_to_array(self.index().id_map)
        return keys

    def key_set(self) -> frozenset[int]:
        if self._keys is None:
            self._keys = frozenset(self.keys().tolist())
        return self._keys


def _parsed(data: bytes, dim: int) -> Any:
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
    if not isinstance(index, faiss.IndexIDMap2) or index.d != dim:
        raise LibraryCorrupt(f"the FAISS file holds vectors of {index.d} numbers instead of {dim}")
    return index
