"""Where in a passage an answer stands."""

from __future__ import annotations

import difflib
import re

_WORD = re.compile(r"\w+")
SHARE = 0.6
"""Share of an answer's letters that must stand together in a passage to be pointed at."""


def answering_span(answer: str, passage: str) -> tuple[int, int] | None:
    """(start, end) of the characters of a passage that say what the answer says, None where none do.

    The answer's own words if they stand there, whatever their case and what is between them, else the longest run of
    them that holds most of its letters. It points out, it proves nothing.
    """
    wanted, there = _words(answer), _words(passage)
    if not wanted or not there:
        return None
    words, found = [w for w, *_ in wanted], [w for w, *_ in there]
    match = difflib.SequenceMatcher(None, words, found, autojunk=False).find_longest_match()
    if sum(map(len, words[match.a : match.a + match.size])) < SHARE * sum(map(len, words)):
        return None
    return there[match.b][1], there[match.b + match.size - 1][2]


def _words(text: str) -> list[tuple[str, int, int]]:
    """(word in small letters, start, end) of each."""
    return [(m[0].casefold(), m.start(), m.end()) for m in _WORD.finditer(text)]
