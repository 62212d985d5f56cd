"""What a turn of a conversation is searched for by: its own words, and those of the turn it refers back to."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BACK = frozenset(
    "it its itself they them their theirs he him his she her hers this that these those there then one ones".split()
)
"""Words that stand for something that was named before."""
_OPENINGS = re.compile(r"(and|but|also|or|so|what about|how about|why|who else|what else|which one)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
SHORT = 4
"""Words of a question so short that it can hardly stand alone, where it begins like a continuation."""


def refers_back(question: str) -> bool:
    """Whether an English question takes something from what was said before: by a pronoun ("its moon"), or as a
    continuation ("and in winter?", "why?")."""
    words = [w.lower() for w in _WORD.findall(question)]
    if not words:
        return False
    begins = _OPENINGS.match(question.strip())
    return not _BACK.isdisjoint(words) or bool(begins and (len(words) <= SHORT or begins[1].lower() in ("and", "but")))


def searched(question: str, earlier: Sequence[str]) -> str:
    """The search query of a question after `earlier` ones, oldest first: with the last that stood by itself, and what
    came after it, in front, where it refers back."""
    back = []
    if refers_back(question):
        for before in reversed(earlier):
            back.append(before)
            if not refers_back(before):
                break
    return " ".join([*reversed(back), question])
