"""Where a text may be cut: sentences, paragraphs, headings. Positions name the first character after a cut."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

INK = re.compile(r"\S")
"""The next character that is not white space, by the definition of str.strip."""

_WINDOW = 4096
"""Characters looked at together. sentencex takes quadratic time in a paragraph without spaces, so it gets little."""


@dataclass(frozen=True)
class Breaks:
    """Ascending positions, each of a character that is not white space; the stronger kinds are also in `units`."""

    units: Sequence[int]
    paragraphs: Sequence[int]
    headings: Sequence[int]


def find_breaks(text: str, headings: Iterable[int], *, lines: bool = False) -> Breaks:
    """All breaks of a text, in linear time. Units are sentences, or with `lines` (source code) lines."""
    paragraphs = _inked(text, _paragraph_starts(text))
    marks = _inked(text, sorted(at for at in headings if 0 <= at < len(text)))
    units = _inked(text, _line_starts(text) if lines else _sentence_starts(text))
    return Breaks(sorted({*units, *paragraphs, *marks}), paragraphs, marks)


def last_at_most(positions: Sequence[int], limit: int) -> int:
    """The greatest position that is <= limit, or -1."""
    i = bisect_right(positions, limit)
    return positions[i - 1] if i else -1


def _sentence_starts(text: str) -> Iterator[int]:
    from sentencex import get_sentence_boundaries

    at = 0
    while at < len(text):
        window = text[at : at + _WINDOW]
        starts = [at + found["start_index"] for found in get_sentence_boundaries("en", window)]
        yield from starts
        # The last sentence may go on behind the window: it opens the next one, unless it fills this one.
        last = starts[-1] if starts else at
        at = last if last > at and at + _WINDOW < len(text) else at + _WINDOW


def _line_starts(text: str) -> Iterator[int]:
    return accumulate((len(line) + 1 for line in text.split("\n")), initial=0)


def _paragraph_starts(text: str) -> Iterator[int]:
    at, after_blank = 0, False
    for line in text.split("\n"):
        blank = not line or line.isspace()
        if after_blank and not blank:
            yield at
        at, after_blank = at + len(line) + 1, blank


def _inked(text: str, ascending: Iterable[int]) -> list[int]:
    """Positions moved on to the next character that is not white space, each once."""
    found: list[int] = []
    for at in ascending:
        if found and at <= found[-1]:
            continue
        match = INK.search(text, at)
        if match is None:
            break
        if not found or match.start() > found[-1]:
            found.append(match.start())
    return found
