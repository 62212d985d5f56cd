"""Index terms of texts, and what BM25 (Lucene's variant) gives each text for each of its terms.

Tokens are case-folded words without English stop words, stemmed when PyStemmer is installed; each ideograph or kana
is a word. Latin, Greek and Cyrillic letters count without their accents, Hebrew and Arabic ones without vowel points,
forms of compatibility (full width, ligatures) as the plain ones; soft hyphens, blanks of no width and hyphens at line
ends part no word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

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


def scores(split: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> dict[str, np.ndarray]:
    """What each term (column) gives each text (row) that has it: the columns one after the other as `data` and
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
