"""Lexical search: BM25 over passage texts, for one generation.

Built with sorted vocabulary, so scores do not depend on hash seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from sac_rag.bm25 import scores, words
from sac_rag.errors import LibraryCorrupt


class LexicalIndex:
    """BM25 over passages: `build` it from (row key, text) pairs, or `parse` what `serialize` gave."""

    def __init__(self, keys: np.ndarray, vocabulary: Sequence[str], scores: Mapping[str, np.ndarray]) -> None:
        """scores: as of `sac_rag.bm25.scores`; empty where the vocabulary is."""
        self._keys, self._scores = keys, scores
        self._vocabulary = {w: i for i, w in enumerate(vocabulary)}

    @classmethod
    def build(cls, keys: Sequence[int], texts: Iterable[str]) -> LexicalIndex:
        split = words(texts)
        vocabulary = sorted({w for text in split for w in text})
        return cls(np.asarray(keys, np.int64), vocabulary, scores(split, vocabulary) if vocabulary else {})

    @classmethod
    def parse(cls, data: bytes) -> LexicalIndex:
        """From bytes of `serialize`; LibraryCorrupt if they are no index. A right hash does not say so: whoever writes
        a file can write its hash."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            keys, text = arrays.pop("keys"), arrays.pop("vocabulary").tobytes().decode()
            vocabulary = text.split("\n") if text else []
            _check(keys, vocabulary, arrays)
        except (SafetensorError, ValueError, TypeError, KeyError) as e:
            raise LibraryCorrupt(f"the lexical index does not parse: {e!r}") from e
        return cls(keys, vocabulary, arrays)

    def is_of(self, keys: Sequence[int]) -> bool:
        """Whether it is an index of the passages of these row keys, in their order."""
        return self._keys.tolist() == list(keys)

    def serialize(self) -> bytes:
        from safetensors.numpy import save

        text = "\n".join(self._vocabulary).encode()  # a term holds no white space
        data: bytes = save({**self._scores, "keys": self._keys, "vocabulary": np.frombuffer(text, np.uint8)})
        return data

    def most(self, text: str) -> float:
        """An upper bound of the score of any passage, above 0: each word of the text as often as can be."""
        count = len(self._keys)
        indptr = self._scores.get("indptr")
        total = 0.0
        for word in words([text])[0]:
            at = self._vocabulary.get(word)
            frequency = 0 if at is None or indptr is None else int(indptr[at + 1] - indptr[at])
            total += math.log(1 + (count - frequency + 0.5) / (frequency + 0.5))
        return total or 1.0

    def search(self, text: str, k: int | None, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """(key, BM25 score > 0) of the best k (None: all) and of whatever ties with the k-th, unordered."""
        ids = [self._vocabulary[w] for w in words([text])[0] if w in self._vocabulary]
        if not ids:
            return []
        data, indices, indptr = (self._scores[name] for name in ("data", "indices", "indptr"))
        scores = np.zeros(len(self._keys), np.float32)
        for i in ids:
            term = slice(indptr[i], indptr[i + 1])
            np.add.at(scores, indices[term], data[term])
        keep = scores > 0
        if allowed is not None:
            keep &= np.isin(self._keys, np.fromiter(allowed, np.int64, len(allowed)))
        keys, scores = self._keys[keep], scores[keep]
        if k is not None and len(scores) > k:
            kth = np.partition(scores, len(scores) - k)[len(scores) - k]
            keys, scores = keys[scores >= kth], scores[scores >= kth]
        return list(zip(keys.tolist(), scores.astype(float).tolist(), strict=True))


def _check(keys: np.ndarray, vocabulary: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless these are columns of scores: one a term, of rows that exist, finite."""
    shapes = {name: (array.ndim, array.dtype.kind) for name, array in arrays.items()}
    wanted = {"data": (1, "f"), "indices": (1, "i"), "indptr": (1, "i")} if vocabulary else {}
    if (keys.ndim, keys.dtype) != (1, np.int64) or shapes != wanted:
        raise ValueError(f"arrays {shapes} beside keys {keys.shape} {keys.dtype}")
    if len(set(vocabulary)) != len(vocabulary):
        raise ValueError("a term stands twice in the vocabulary")
    if not vocabulary:
        return
    data, indices, indptr = arrays["data"], arrays["indices"], arrays["indptr"]
    if len(indptr) != len(vocabulary) + 1 or indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(f"{len(indptr)} bounds of {len(vocabulary)} terms do not cover {len(data)} scores")
    if len(indices) != len(data) or (indices < 0).any() or (indices >= len(keys)).any():
        raise ValueError(f"scores of passages that are not there, or {len(indices)} passages for {len(data)} scores")
    if not np.isfinite(data).all():
        raise ValueError("a score is NaN or infinite")
