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
STOP = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
"""English stop words, Lucene's list."""
K1, B = 1.5, 0.75
"""How soon a further occurrence of a word counts for less, and how much the length of a passage does."""


def plain(text: str) -> str:
    """A text as it is searched: letters without accents and in one form, words whole."""
    if text.isascii() and "-" not in text:
        return text.casefold()
    text = _LINE_END.sub("", _UNSEEN.sub("", text))
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFKC", bare).casefold()


def words(texts: Iterable[str]) -> list[list[str]]:
    """Index terms of each text."""
    split = [[w for w in _WORD.findall(plain(text)) if w not in STOP] for text in texts]
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

    def __init__(self, keys: np.ndarray, vocabulary: Sequence[str], scores: Mapping[str, np.ndarray]) -> None:
        """scores: as of `_scores`; empty where the vocabulary is."""
        self._keys, self._scores = keys, scores
        self._vocabulary = {w: i for i, w in enumerate(vocabulary)}

    @classmethod
    def build(cls, keys: Sequence[int], texts: Iterable[str]) -> LexicalIndex:
        split = words(texts)
        vocabulary = sorted({w for text in split for w in text})
        return cls(np.asarray(keys, np.int64), vocabulary, _scores(split, vocabulary) if vocabulary else {})

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


def _scores(split: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> dict[str, np.ndarray]:
    """What each term (column) gives each passage (row) that has it: the columns one after the other as `data` and
    `indices`, their bounds as `indptr`. The bits are those of bm25s, whose import takes longer than all of this."""
    number = {word: i for i, word in enumerate(vocabulary)}
    lengths = np.array([len(text) for text in split])
    terms = np.fromiter((number[word] for text in split for word in text), np.int64, int(lengths.sum()))
    pairs, counts = np.unique(terms << 32 | np.repeat(np.arange(len(split)), lengths), return_counts=True)
    terms, rows = pairs >> 32, pairs & 0xFFFFFFFF
    frequencies = np.bincount(terms, minlength=len(vocabulary))
    rarity = [math.log(1 + (len(split) - f + 0.5) / (f + 0.5)) for f in frequencies.tolist()]
    long = K1 * ((1 - B) + B * lengths / lengths.mean())
    data = np.array(rarity, np.float32)[terms] * (counts / (long[rows] + counts))
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(frequencies)])
    return {"data": data.astype(np.float32), "indices": rows.astype(np.int32), "indptr": indptr}
