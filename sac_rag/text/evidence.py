"""Sentences that a question is about: they are read as text behind the memories of their passages.

Extractive compression beside memory, as the extractive compressor of RECOMP (Xu et al., arXiv 2310.04408, section 3.1)
keeps sentences in place of passages. A memory holds what a passage is about, a sentence the very words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from sac_rag.bm25 import scores, words
from sac_rag.records import Evidence
from sac_rag.text.breaks import find_breaks

RANK_PRIOR = 0.5
"""What a sentence of the next lower text must have more in BM25 to be taken first."""
MOST_CHARACTERS = 600
"""Longest sentence. What is longer is a table, a list or code, and is cut at its lines, or has no ends of sentences at
all, and is cut at blanks."""
GRAM = 3
"""Characters that count as a word where words have no blanks between them."""

_UNPARTED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")
"""A word of Thai, Lao, Burmese or Khmer, which is a phrase: nothing stands between its words."""


class Sentence(NamedTuple):
    """Characters `start` to `end` of the text of this rank."""

    rank: int
    start: int
    end: int


def evidence_of(texts: Sequence[str], question: str, count: int) -> list[Sentence]:
    """The `count` sentences of texts, given best first, that share most of its rare words with a question (BM25 over
    these sentences); none that shares no word, and none that says the same as another. In reading order, those of the
    best text last, nearest the question."""
    if count < 1:
        return []
    found = [Sentence(rank, *span) for rank, text in enumerate(texts) for span in _sentences(text)]
    said = [_in_one_line(texts[s.rank][s.start : s.end]) for s in found]
    split = _terms([question, *said])
    asked, split = set(split[0]), split[1:]
    if not any(asked.intersection(terms) for terms in split):
        return []
    vocabulary = sorted({word for terms in split for word in terms})
    of = scores(split, vocabulary)
    total = np.zeros(len(found))
    for column, word in enumerate(vocabulary):
        if word in asked:
            term = slice(of["indptr"][column], of["indptr"][column + 1])
            total[of["indices"][term]] += of["data"][term]
    fit = total - RANK_PRIOR * np.array([s.rank for s in found])
    best = sorted(np.flatnonzero(total).tolist(), key=lambda i: (-fit[i], i))
    first = {said[i]: i for i in reversed(best)}
    once = [i for i in best if first[said[i]] == i][:count]
    return sorted((found[i] for i in once), key=lambda s: (-s.rank, s.start))


def quoted(passages: Sequence[tuple[str, str]], question: str, count: int) -> tuple[Evidence, ...]:
    """These sentences of passages, given as (id, text), best first."""
    found = evidence_of([text for _, text in passages], question, count)
    return tuple(Evidence(passages[rank][0], start, end, passages[rank][1][start:end]) for rank, start, end in found)


def evidence_lines(evidence: Sequence[Evidence]) -> str:
    """Sentences as they are read: one a line, each in one line; "" where there are none."""
    return "\n".join(_in_one_line(sentence.text) for sentence in evidence)


def evidence_text(texts: Sequence[str], question: str, count: int) -> str:
    """What is read of texts that have no ids, as of `evidence_lines`."""
    return evidence_lines(quoted([("", text) for text in texts], question, count))


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def _terms(texts: Sequence[str]) -> list[list[str]]:
    """Index terms of each text; of phrases without blanks their runs of `GRAM` characters."""
    return [[term for word in said for term in _grams(word)] for said in words(texts)]


def _grams(word: str) -> Sequence[str]:
    if not _UNPARTED.fullmatch(word):
        return (word,)
    return [word[at : at + GRAM] for at in range(max(1, len(word) - GRAM + 1))]


def _sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each, without the white space around it, of `MOST_CHARACTERS` at the most."""
    bounds = pairwise([*find_breaks(text, ()).units, len(text)])
    return [part for start, end in bounds for part in _parts(text, start, start + len(text[start:end].rstrip()))]


def _parts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """A sentence; of one that is too long its lines, and of such a line what stands between blanks."""
    if end - start <= MOST_CHARACTERS:
        yield start, end
        return
    for line in re.finditer(r"\S[^\n]*", text[start:end]):
        at, stop = start + line.start(), start + line.start() + len(line[0].rstrip())
        while stop - at > MOST_CHARACTERS:
            head = text[at : at + MOST_CHARACTERS + 1]
            blanks = list(re.finditer(r"\s+", head))
            cut = at + (blanks[-1].start() if blanks else MOST_CHARACTERS)
            yield at, cut
            at = cut + len(text[cut:stop]) - len(text[cut:stop].lstrip())
        yield at, stop
