"""Lexical search: BM25 (Lucene's variant) over passage texts, for one generation.

Tokens are case-folded words without English stop words, stemmed when PyStemmer is installed; each ideograph or kana
is a word. Latin, Greek and Cyrillic letters count without their accents, Hebrew and Arabic ones without vowel points,
forms of compatibility (full width, ligatures) as the plain ones; soft hyphens, blanks of no width and hyphens at line
ends part no word. Built with sorted vocabulary, so scores do not depend on hash seeds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sac_rag.errors import LibraryCorrupt

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = "".join(
    chr(c) for c in range(0x0300, 0x1200) if unicodedata.category(chr(c)) in ("Mn", "Mc")
)  # of Hebrew, Arabic, the scripts of India, Thai and others: \w has them not
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}][^\W{_CJK}{_MARKS}]*(?:[{_MARKS}]+[^\W{_CJK}]*)*")
_UNSEEN = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_LINE_END = re.compile(r"(?<=[^\W\d_])[-\u2010]\r?\n[ \t]*(?=[^\W\d_])")
_ACCENTS = re.compile(
    "(?<=[A-Za-z\u0370-\u03ff])[\u0300-\u036f]+"
    "|(?<=[\u0400-\u04ff])[\u0300-\u0305\u0307-\u036f]+"  # but the breve, which makes another letter
    "|[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u064b-\u0652]"  # vowel points of Hebrew and Arabic
)


def plain(text: str) -> str:
    """A text as it is searched: letters without accents and in one form, words whole."""
    if text.isascii() and "-" not in text:
        return text.casefold()
    text = _LINE_END.sub("", _UNSEEN.sub("", text))
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", bare).casefold()


def words(texts: Iterable[str]) -> list[list[str]]:
    """Index terms of each text."""
    from bm25s.stopwords import STOPWORDS_EN

    stop = frozenset(STOPWORDS_EN)
    split = [[w for w in _WORD.findall(plain(text)) if w not in stop] for text in texts]
    stemmer = _stemmer()
    if stemmer is None:
        return split
    unique = sorted({w for text in split for w in text})
    stem = dict(zip(unique, stemmer.stemWords(unique), strict=True))
    return [[stem[w] for w in text] for text in split]


def rules() -> str:
    """What the terms of a text depend on besides the text; indexes made by other rules do not fit a question's."""
    return "words-2 english" if _stemmer() else "words-2"


KNOWN_RULES = ("words-1", "words-1 english", "words-2", "words-2 english")
"""Of this version and those before, with and without a stemmer."""


def _stemmer() -> Any:
    """None where PyStemmer is not installed. One's own: they keep a cache and are not safe to share between threads."""
    try:
        import Stemmer
    except ImportError:
        return None
    return Stemmer.Stemmer("english")


class LexicalIndex:
    """BM25 over passages: `build` it from (row key, text) pairs, or `parse` what `serialize` gave."""

    def __init__(self, keys: np.ndarray, vocabulary: Sequence[str], bm25: Any) -> None:
        self._keys, self._bm25 = keys, bm25
        self._vocabulary = {w: i for i, w in enumerate(vocabulary)}

    @classmethod
    def build(cls, keys: Sequence[int], texts: Iterable[str]) -> LexicalIndex:
        split = words(texts)
        vocabulary = sorted({w for text in split for w in text})
        bm25 = _bm25()
        if vocabulary:
            number = {w: i for i, w in enumerate(vocabulary)}
            ids = [[number[w] for w in text] for text in split]
            bm25.index((ids, number), create_empty_token=False, show_progress=False)
        return cls(np.asarray(keys, np.int64), vocabulary, bm25)

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
        bm25 = _bm25()
        bm25.scores = {**arrays, "num_docs": len(keys)}
        return cls(keys, vocabulary, bm25)

    def is_of(self, keys: Sequence[int]) -> bool:
        """Whether it is an index of the passages of these row keys, in their order."""
        return self._keys.tolist() == list(keys)

    def serialize(self) -> bytes:
        from safetensors.numpy import save

        text = "\n".join(self._vocabulary).encode()  # a term holds no white space
        arrays = {k: v for k, v in self._bm25.scores.items() if k != "num_docs"} if self._vocabulary else {}
        data: bytes = save({**arrays, "keys": self._keys, "vocabulary": np.frombuffer(text, np.uint8)})
        return data

    def most(self, text: str) -> float:
        """An upper bound of the score of any passage, above 0: each word of the text as often as can be."""
        count = len(self._keys)
        indptr = self._bm25.scores["indptr"] if self._vocabulary else None
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
        scores = self._bm25.get_scores_from_ids(ids)
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


def _bm25() -> Any:
    import bm25s

    bm25 = bm25s.BM25(method="lucene", backend="numpy", csc_backend="numpy")
    bm25.nonoccurrence_array = None  # this variant has none; set where an index is parsed instead of built, too
    return bm25
