"""Sentences that a question is about: they are read as text behind the memories of their passages.

Extractive compression beside memory, as the extractive compressor of RECOMP (Xu et al., arXiv 2310.04408, section 3.1)
keeps sentences in place of passages. A memory holds what a passage is about, a sentence the very words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sac_rag.bm25 import scores, words
from sac_rag.text.breaks import find_breaks

RANK_PRIOR = 0.5
"""What a sentence of the next lower text must have more in BM25 to be taken first."""


class Sentence(NamedTuple):
    """Characters `start` to `end` of the text of this rank."""

    rank: int
    start: int
    end: int


def evidence_of(texts: Sequence[str], question: str, count: int) -> list[Sentence]:
    """The `count` sentences of texts, given best first, that share most of its rare words with a question (BM25 over
    these sentences); none that shares no word. In reading order, those of the best text last, nearest the question."""
    if count < 1:
        return []
    found = [Sentence(rank, *span) for rank, text in enumerate(texts) for span in _sentences(text)]
    split = words([question, *(texts[s.rank][s.start : s.end] for s in found)])
    asked, split = set(split[0]), split[1:]
    if not any(asked.intersection(said) for said in split):
        return []
    vocabulary = sorted({word for said in split for word in said})
    of = scores(split, vocabulary)
    total = np.zeros(len(found))
    for column, word in enumerate(vocabulary):
        if word in asked:
            term = slice(of["indptr"][column], of["indptr"][column + 1])
            total[of["indices"][term]] += of["data"][term]
    fit = total - RANK_PRIOR * np.array([s.rank for s in found])
    best = sorted(np.flatnonzero(total).tolist(), key=lambda i: (-fit[i], i))[:count]
    return sorted((found[i] for i in best), key=lambda s: (-s.rank, s.start))


def evidence_text(texts: Sequence[str], question: str, count: int) -> str:
    """These sentences, one a line, each in one line; "" where there are none."""
    found = evidence_of(texts, question, count)
    return "\n".join(" ".join(texts[s.rank][s.start : s.end].split()) for s in found)


def _sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each, without the white space around it."""
    bounds = pairwise([*find_breaks(text, ()).units, len(text)])
    return [(start, start + len(text[start:end].rstrip())) for start, end in bounds]
