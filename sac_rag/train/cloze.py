"""Questions out of plain text: a sentence asks for a name, number or phrase that was taken out of it.

Unsupervised cloze questions (Lewis et al. 2019, "Unsupervised Question Answering by Cloze Translation") let any
text train an adapter. What is taken out must come from the memory, and names and numbers are what a memory
loses first. Rules of English; in other scripts few or no questions are found, which does no harm. What is made of a
text and a seed is part of every training run on record: a change here makes those runs unrepeatable.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?![\s\"”')\]]*(?:\s|$))[^.!?\n]*)*[.!?]?[\"”')\]]*")
_NUMBER = re.compile(
    r"(?:[$£€]\s?)?\b\d+(?:[.,]\d+)*(?:st|nd|rd|th|s)?\b(?:\s?%|\s(?:percent|per cent|million|billion|thousand|years|"
    r"miles|people|km|kilometers|metres|meters|feet|hours|days|months|weeks|minutes)\b)?"
)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:(?:\d{{1,2}}\s)?(?:{_MONTH})(?:\s\d{{1,2}})?(?:,?\s\d{{4}})?)\b")
_NAME = re.compile(r"\b[A-Z][\w'\u2019.&-]*\w(?:\s(?:(?:of|the|de|von|van|and|for)\s)?[A-Z][\w'\u2019.&-]*\w)*\b")
_WORD = re.compile(r"[^\W_](?:[\w'\u2019-]*[^\W_])?")
_EDGE = re.compile(r"[,;:()\[\]\u2014\u2013]")
_YEAR = re.compile(r"^1[0-9]{3}s?$|^20[0-9]{2}s?$")
_STOP = frozenset(
    "a about above after again against all almost also although am among an and any are as at be became because become "
    "been before being below between both but by can could did do does during each either even every few for from had "
    "has have having he her here hers him his how however i if in into is it its itself just made make many may me "
    "might more most much must my near neither no nor not now of off often on once one only onto or other our out over "
    "own per rather said same she should since so some such than that the their them themselves then there these they "
    "this those though through thus to too toward towards under until up upon us used very via was we well were what "
    "when where whether which while who whom whose why will with within without would yet you your".split()
)
_LONGEST = 4000
"""Characters of a sentence, at most: longer ones are tables and machine output, and cost time by their square."""
_OPENERS = frozenset("a an the of in by for with from into his her its their".split())
_WH = {
    "year": ("what year", "when"),
    "date": ("when", "on what date"),
    "number": ("how many", "what number", "how much"),
    "name": ("who", "what", "which"),
    "phrase": ("what",),
}


@dataclass(frozen=True)
class Span:
    """A stretch of a sentence that can be asked for."""

    start: int
    end: int
    kind: str


def cloze_questions(text: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """At most `count` (question, answer) pairs over `text`, drawn by `rng`; no two take out the same words.

    An answer is a stretch of `text`, and stands nowhere else in its own question.
    """
    found: list[tuple[str, Span]] = []
    for sentence in sentences(text):
        found += [(sentence, span) for span in _spans(sentence)]
    weights = {"year": 2.0, "date": 2.0, "number": 2.0, "name": 2.0, "phrase": 1.0}
    order = sorted(found, key=lambda f: rng.random() ** (1 / weights[f[1].kind]), reverse=True)
    pairs: list[tuple[str, str]] = []
    taken: set[str] = set()
    for sentence, span in order:
        answer = sentence[span.start : span.end]
        if len(pairs) == count:
            break
        if answer.lower() in taken:
            continue
        question = _ask(sentence, span, rng)
        if question and answer.lower() not in question.lower():
            taken.add(answer.lower())
            pairs.append((question, answer))
    return pairs


def spans_of(text: str, *, short: bool = False) -> list[tuple[str, str]]:
    """(words, kind) of all spans of a text that can be asked for; the kinds are those of `_WH`. short: the text is one
    sentence, of however few words."""
    found = [text] if short else sentences(text)
    return [(s[span.start : span.end], span.kind) for s in found for span in _spans(s)]


def sentences(text: str) -> Iterator[str]:
    """Sentences of a text that can be asked about: of 6 to 60 words."""
    for match in _SENTENCE.finditer(text):
        sentence = match.group().strip()
        if len(sentence) <= _LONGEST and 6 <= len(sentence.split()) <= 60:
            yield sentence


def _spans(sentence: str) -> list[Span]:
    """Dates, numbers, names and runs of content words; what overlaps an earlier kind is left out."""
    spans: list[Span] = []

    def add(start: int, end: int, kind: str) -> None:
        if all(end <= s.start or start >= s.end for s in spans):
            spans.append(Span(start, end, kind))

    for match in _DATE.finditer(sentence):
        if match.group() != "May":
            add(*match.span(), "date")
    for match in _NUMBER.finditer(sentence):
        add(*match.span(), "year" if _YEAR.match(match.group()) else "number")
    for match in _NAME.finditer(sentence):
        start, end = match.span()
        words = match.group().split()
        if words[0].lower() in _STOP:
            start += len(words[0]) + 1
            words = words[1:]
        if words and len(words) <= 7 and not (start == 0 and len(words) == 1):
            add(start, end, "name")
    for run in _runs(sentence):
        add(*run, "phrase")
    return spans


def _runs(sentence: str) -> Iterator[tuple[int, int]]:
    """Runs of one to four content words between stop words and punctuation (RAKE's candidates).

    A word alone counts behind an article or preposition only: most others are verbs.
    """
    words: list[tuple[int, int]] = []
    last, before, opener = 0, "", ""
    for match in [*_WORD.finditer(sentence), None]:
        ends = match is None or match.group().lower() in _STOP or bool(_EDGE.search(sentence, last, match.start()))
        if ends and words:
            start, end = words[0][0], words[-1][1]
            if end - start >= 4 and (1 < len(words) <= 4 or (len(words) == 1 and opener in _OPENERS)):
                yield start, end
            words = []
        if match is not None:
            last = match.end()
            if match.group().lower() not in _STOP:
                opener = opener if words else before
                words.append(match.span())
            before = match.group().lower()


def _ask(sentence: str, span: Span, rng: random.Random) -> str:
    """The sentence without the span: with a question word in its place or in front, cut shorter by chance."""
    left, right = sentence[: span.start], sentence[span.end :].rstrip(".!? \"”'")
    left, right = _trim(left, rng, tail=True), _trim(right, rng, tail=False)
    if len((left + right).split()) < 4:
        return ""
    wh = rng.choice(_WH[span.kind])
    if rng.random() < 0.5:
        question = f"{left.strip()} {wh} {right.strip()}"
    else:
        left = re.sub(r"\b(?:in|on|at|the|a|an|of|by|to|from|for|with)\s*$", "", left.strip())
        question = f"{wh} {left.strip()} {right.strip()}"
    kept = [w for w in question.split() if w.lower() in wh or rng.random() > 0.08]
    question = re.sub(r"\s+([,;:.])", r"\1", " ".join(kept)).strip(" ,;:")
    return question[:1].upper() + question[1:] + "?" if question else ""


def _trim(side: str, rng: random.Random, *, tail: bool) -> str:
    """One side of the gap, cut at the nearest comma or the like in two of three cases, and to at most 16 words."""
    pieces = _EDGE.split(side)
    if len(pieces) > 1 and rng.random() < 0.67:
        piece = pieces[-1] if tail else pieces[0]
        side = piece if len(piece.split()) > 2 else side
    words = side.split()
    return " ".join(words[-16:] if tail else words[:16])
