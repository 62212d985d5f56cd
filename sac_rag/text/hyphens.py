"""Words broken at line ends: a hyphen there goes where it only broke a word, and stays where it belongs to one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sac_rag.text.cleaning import Shift

_BROKEN = re.compile(
    r"(?<![^\W\d_])(?P<before>[^\W\d_]+(?:-[^\W\d_]+)*)[-\u2010][ \t]*\n[ \t]*(?P<after>[^\W\d_]+(?:-[^\W\d_]+)*)"
)
"""A word, a hyphen at the end of its line, and the word that opens the next line."""

_COMPOUNDS = frozenset(
    "all anti co cross double eight eighty ex far fifty five forty four full half hard high ill in inter large left"
    " long low many mid multi nine ninety non off old on one open over part post pre pro quasi re right second self"
    " semi seven seventy short single six sixty small so soft still sub ten third thirty three top tri twenty two under"
    " up vice well wide word world".split()
)
"""First parts that English writes with a hyphen. Where such a break is doubtful, the hyphen is kept."""

_CONJUNCTIONS = frozenset("and or to und oder bzw et ou y o e en of og och och eller i lub ja tai".split())
"""Behind a hanging hyphen ("pre- and postwar"): two words, not one."""


def broken_words(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement) of each line end that breaks a word: "" joins it, "-" joins what is written with one.

    Only breaks between two letters in lower case count. How the text itself writes the word elsewhere decides; where
    it says nothing, first parts that English writes with a hyphen keep theirs. The span covers the hyphen, the line
    end and the indentation behind it.
    """
    if not re.search(r"[-\u2010][ \t]*\n", text):
        return
    folded = text.lower()
    words = set(re.findall(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*", folded))
    # Broken words themselves are no evidence: their halves are words of this list, their whole is not.
    at = 0
    while match := _BROKEN.search(text, at):
        before, after = match["before"], match["after"]
        at = match.end("before") + 1
        if not (before[-1].islower() and after[0].islower()) or after.lower() in _CONJUNCTIONS:
            continue
        first, last = before.rpartition("-")[2].lower(), after.partition("-")[0].lower()
        hyphen = f"{first}-{last}" in words and first + last not in words
        hyphen |= first + last not in words and ("-" in before or first in _COMPOUNDS)
        yield match.end("before"), match.start("after"), "-" if hyphen else ""


def joined(text: str) -> tuple[str, tuple[Shift, ...]]:
    """(the text with words broken at line ends made whole, where its characters stand in `text`)."""
    parts: list[str] = []
    shifts: list[Shift] = []
    at = size = 0
    for start, end, hyphen in broken_words(text):
        parts += (text[at:start], hyphen)
        size += start - at + len(hyphen)
        shifts.append((size, end))
        at = end
    return "".join((*parts, text[at:])), tuple(shifts)
