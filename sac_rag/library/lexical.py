"""Lexical search: BM25 (Lucene's variant) over passage texts, built in memory for one generation.

Tokens are case-folded words without English stop words, stemmed when PyStemmer is installed; each ideograph or kana
is a word. Built with sorted vocabulary, so scores do not depend on hash seeds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def words(texts: Iterable[str]) -> list[list[str]]:
    """Index terms of each text."""
    from bm25s.stopwords import STOPWORDS_EN

    stop = frozenset(STOPWORDS_EN)
    split = [[w for w in _WORD.findall(text.casefold()) if w not in stop] for text in texts]
    try:
        import Stemmer
    except ImportError:
        return split
    unique = sorted({w for text in split for w in text})
    # A stemmer of one's own: they keep a cache and are not safe to share between threads.
    stem = dict(zip(unique, Stemmer.Stemmer("english").stemWords(unique), strict=True))
    return [[stem[w] for w in text] for text in split]


class LexicalIndex:
    """BM25 over (row key, text) pairs."""

    def __init__(self, keys: Sequence[int], texts: Iterable[str]) -> None:
        import bm25s

        self._keys = np.asarray(keys, np.int64)
        split = words(texts)
        self._vocabulary = {w: i for i, w in enumerate(sorted({w for text in split for w in text}))}
        self._bm25: Any = None
        if self._vocabulary:
            self._bm25 = bm25s.BM25(method="lucene", backend="numpy", csc_backend="numpy")
            ids = [[self._vocabulary[w] for w in text] for text in split]
            self._bm25.index((ids, dict(self._vocabulary)), show_progress=False)

    def search(self, text: str, k: int | None, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """(key, BM25 score > 0) of the best k (None: all) and of whatever ties with the k-th, unordered."""
        ids = [self._vocabulary[w] for w in words([text])[0] if w in self._vocabulary]
        if not ids:
            return []
        scores = self._bm25.get_scores_from_ids(ids)
        keep = scores > 0
        if allowed is not None:
            keep &= np.isin(self._keys, np.fromiter(allowed, np.int64, len(allowed)))
        keys, scores = self._keys[keep], scores[keep]
        if k is not None and len(scores) > k:
            kth = np.partition(scores, len(scores) - k)[len(scores) - k]
            keys, scores = keys[scores >= kth], scores[scores >= kth]
        return list(zip(keys.tolist(), scores.astype(float).tolist(), strict=True))
