"""Dense search: cosine similarity over a FAISS index whose ids are the catalog's row keys.

FAISS proposes, float64 decides: candidates are scored again, row by row, so that scores and order do not depend on
instruction sets, thread counts or where a vector lies in the index. A flat index proposes all that may be among the
best. IVF-PQ ("approximate") holds codes instead of vectors and looks at a part of them: what it proposes is scored by
the vectors of the catalog, and what it overlooks is not found.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, PassageGone

_PARSING = threading.Lock()
"""Held while FAISS's limit on what it parses, one for the whole process, is that of a file."""
_SLACK = 1e-4
"""More than FAISS's float32 scores of unit vectors can be off."""

KINDS = ("exact", "approximate", "auto")
APPROXIMATE_FROM = 1_000_000
"""Vectors from which "auto" is approximate: a core takes a good part of a second to look at more, one by one."""
LEAST_APPROXIMATE = 10_000
"""Fewest vectors that codes are fitted to."""
PROPOSED = 10
"""Candidates of an approximate search for each passage that is wanted, at least `PROPOSED_LEAST`."""
PROPOSED_LEAST = 200
PROBED = 32
"""One in so many lists of an approximate index is looked at, and at least `PROBED_LEAST`."""
PROBED_LEAST = 8

Stored: TypeAlias = Callable[[Sequence[int]], Mapping[int, np.ndarray]]
"""Row keys -> the unit vectors (dim,) that the catalog holds for them, without those that are gone."""


def kind_of(name: str, count: int) -> str:
    """"exact" or "approximate", of a name of `KINDS` and a number of vectors. Raises ConfigError for others, and where
    there are too few for codes."""
    if name not in KINDS:
        raise ConfigError(f"the dense index is {name!r}; use {', '.join(KINDS)}")
    if name == "auto":
        return "approximate" if count >= APPROXIMATE_FROM else "exact"
    if name == "approximate" and count < LEAST_APPROXIMATE:
        raise ConfigError(
            f"an approximate index needs {LEAST_APPROXIMATE:,} vectors to be fitted to, and there are {count:,}: exact "
            "is as fast"
        )
    return name


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
    def build(
        cls,
        dim: int,
        keys: Collection[int],
        rows: Iterable[np.ndarray],
        kind: str = "exact",
        stored: Stored | None = None,
    ) -> VectorIndex:
        """An index of unit vectors (dim,), one a key. kind: "exact", or "approximate", which asks `stored` for them."""
        faiss = _faiss()
        index = _lists(dim, len(keys)) if kind == "approximate" else faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        if keys:
            all_rows = np.stack(list(rows))
            if not index.is_trained:
                index.train(all_rows)
            index.add_with_ids(all_rows, np.fromiter(keys, np.int64, len(keys)))
        return cls(_Base(index, dim, stored), dim)

    @classmethod
    def parse(cls, data: bytes, dim: int, count: int | None = None, stored: Stored | None = None) -> VectorIndex:
        """From bytes of `serialize` whose hash the caller has checked; LibraryCorrupt, at first use where `count` is
        None, if they are another index. stored: asked for vectors by an approximate one."""
        made = cls(_Base(data, dim, stored), dim)
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
        return VectorIndex(self._base.like(copy), self.dim)

    def serialize(self) -> bytes:
        faiss = _faiss()
        data: bytes = faiss.serialize_index(self.whole()._base.index()).tobytes()
        return data

    @property
    def kind(self) -> str:
        return "exact" if self._base.is_exact else "approximate"

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
            out[list(places)] = self._base.rows(asked)
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
        if not self._base.is_exact:
            near = self._base.proposed(vector, min(total, max(PROPOSED_LEAST, PROPOSED * k)), selector)
            return list(zip(near, cosines(np.stack(list(near.values())), vector).tolist(), strict=True)) if near else []
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

    def __init__(self, index: Any, dim: int, stored: Stored | None = None) -> None:
        """index: of FAISS, or its bytes, with the `dim` that it must have. stored: where an approximate one has the
        vectors from."""
        self._index, self._dim, self._stored = index, dim, stored
        self._keys: frozenset[int] | None = None
        self._lock = threading.Lock()

    def index(self) -> Any:
        with self._lock:
            if isinstance(self._index, bytes):
                self._index = _parsed(self._index, self._dim)
            return self._index

    def like(self, index: Any) -> _Base:
        """Another index with the same vectors to ask."""
        return _Base(index, self._dim, self._stored)

    @property
    def is_exact(self) -> bool:
        exact: bool = isinstance(self.index(), _faiss().IndexIDMap2)
        return exact

    def rows(self, keys: Sequence[int]) -> np.ndarray:
        """Unit vectors, float32 (n, dim)."""
        if not self.is_exact:
            found = self._vectors(keys)
            if missing := [key for key in keys if key not in found]:
                raise PassageGone(f"the passage of row {missing[0]} is not stored any more: search again")
            return np.stack([found[key] for key in keys])
        try:
            rows: np.ndarray = self.index().reconstruct_batch(np.array(keys, np.int64))
            return rows
        except RuntimeError as e:
            raise LibraryCorrupt(f"the FAISS file lacks vectors that the catalog has: {str(e)[:200]}") from e

    def proposed(self, vector: np.ndarray, count: int, selector: Any) -> Mapping[int, np.ndarray]:
        """What an approximate index takes for the nearest, with the vectors that are stored."""
        index = self.index()
        probed = min(index.nlist, max(PROBED_LEAST, index.nlist // PROBED))
        parameters = _faiss().SearchParametersIVF(nprobe=probed, **({"sel": selector} if selector is not None else {}))
        _, found = index.search(vector[None], count, params=parameters)
        return self._vectors(found[0][found[0] >= 0].tolist())

    def _vectors(self, keys: Sequence[int]) -> Mapping[int, np.ndarray]:
        if self._stored is None:
            raise LibraryError("an approximate index needs the catalog that its vectors are in")
        return self._stored(keys)

    def keys(self) -> np.ndarray:
        """int64, in index order."""
        faiss, index = _faiss(), self.index()
        if self.is_exact:
            keys: np.ndarray = faiss.vector_to_array(index.id_map)
            return keys
        lists = index.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)).copy() for i in range(index.nlist)]
        return np.concatenate(parts)

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
    if not (isinstance(index, faiss.IndexIDMap2) or _is_ours(index)) or index.d != dim:
        raise LibraryCorrupt(f"the FAISS file holds {type(index).__name__} of {index.d} numbers instead of {dim}")
    return index


def _lists(dim: int, count: int) -> Any:
    """An IVF-PQ index to be fitted to so many vectors: codes of a byte for each eight numbers, or what divides them."""
    faiss = _faiss()
    lists = max(1, min(round(4 * count**0.5), count // 39))  # FAISS wants 39 vectors a list to fit its centre
    codes = next(m for m in range(max(1, dim // 8), 0, -1) if dim % m == 0)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, codes, 8, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False  # else parsing makes a table that is many times as long as the file
    return index


def _is_ours(index: Any) -> bool:
    """Whether a parsed index is such a one, in all that searching goes by."""
    faiss = _faiss()
    if not isinstance(index, faiss.IndexIVFPQ) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return False
    quantizer, lists = faiss.downcast_index(index.quantizer), index.invlists
    held = sum(lists.list_size(i) for i in range(index.nlist)) if lists.nlist == index.nlist else -1
    return bool(
        isinstance(quantizer, faiss.IndexFlat)
        and (quantizer.d, quantizer.ntotal) == (index.d, index.nlist)
        and (index.pq.d, index.pq.nbits, index.pq.M) == (index.d, 8, index.code_size)
        and (lists.code_size, held) == (index.code_size, index.ntotal)
        and index.is_trained
        and not index.by_residual
    )
