"""Clean text: NFC, \\n newlines, no NUL, nothing unseen within words; and where its characters stand in the file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

MAX_MARKS = 64
"""Combining marks allowed in a row; normalising a longer run takes quadratic time."""

Shift = tuple[int, int]
"""(offset in a clean text, offset in the file's text): from here on both go on alike, up to the next shift."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = re.compile(rb"[^\0]{%d}" % (MAX_MARKS + 1))
_SPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf"
"""Thai, Lao, Burmese and Khmer, which part their words by blanks of no width."""
_UNSEEN = re.compile(f"[\0\u00ad\u2060\ufeff]|(?<![{_SPACED}])\u200b(?![{_SPACED}])")
"""NUL, and what may stand within a word unseen: soft hyphens, joiners, blanks of no width."""
_UNLIKE = re.compile(f"[\ud800-\udfff]|(?:{_UNSEEN.pattern}|[\x00-\x7f]?[^\x00-\x7f])+")
"""Stretches that cleaning may change, with the letter in front that a mark may belong to."""


class Refused(Exception):
    """Content cannot become text; the message is one short lower-case phrase. Callers add the path."""


def clean(text: str) -> str:
    """NFC, newlines as \\n, lone surrogates replaced by U+FFFD, NUL and unseen signs within words taken out.

    Raises Refused for long runs of combining marks.
    """
    text = newlines(text)
    if text.isascii() and "\0" not in text:
        return text
    text = _UNSEEN.sub("", _SURROGATE.sub("\ufffd", text))
    if _MARKS.search(bytes(map(unicodedata.combining, text))):
        raise Refused(f"over {MAX_MARKS} combining marks in a row")
    return unicodedata.normalize("NFC", text)


def newlines(text: str) -> str:
    """Every line end as one character, as Python's text mode reads files."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shifts_of(text: str, cleaned: str) -> tuple[Shift, ...]:
    """Where `cleaned`, which is clean(text), stops running alike with `text`; text has its newlines in one character.

    Empty where they are equal. Ascending in both offsets.
    """
    if text == cleaned:
        return ()
    ahead = int(text.startswith("\ufeff"))
    """Characters of `text` before the place looked at that `cleaned` lacks."""
    found = [(0, 1)] if ahead else []
    for match in _UNLIKE.finditer(text, ahead):
        if unicodedata.is_normalized("NFC", match[0]) and not _UNSEEN.search(match[0]):
            continue
        for start, end, size in _clusters(match[0]):
            if size != end - start:
                ahead += end - start - size
                at = match.start() + end
                found.append((at - ahead, at))
    return tuple(_last_of_each(found))


def moved(position: int, shifts: tuple[Shift, ...]) -> int:
    """The offset in the file's text of an offset in the clean text."""
    from bisect import bisect_right

    i = bisect_right(shifts, (position, 1 << 62))
    return position + (shifts[i - 1][1] - shifts[i - 1][0] if i else 0)


def composed(first: tuple[Shift, ...], second: tuple[Shift, ...]) -> tuple[Shift, ...]:
    """Shifts of a text that was cleaned in two steps: `second` leads into the text that `first` leads out of."""
    if not first or not second:
        return first or second
    places = {at for at, _ in second} | {_back(at, second) for at, _ in first}
    return tuple(_last_of_each((at, moved(moved(at, second), first)) for at in sorted(places)))


def _back(position: int, shifts: tuple[Shift, ...]) -> int:
    """The offset in the clean text that leads to at least `position`."""
    from bisect import bisect_right

    i = bisect_right([there for _, there in shifts], position)
    at = position - (shifts[i - 1][1] - shifts[i - 1][0] if i else 0)
    return min(at, shifts[i][0]) if i < len(shifts) else at


def _clusters(run: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, clean length) of the parts of a stretch that are composed alone."""
    ends = [i for i in range(1, len(run)) if _begins(run[i])] + [len(run)]
    parts, start = [], 0
    for end in ends:
        part = unicodedata.normalize("NFC", _UNSEEN.sub("", run[start:end])) if end - start > 1 else run[start:end]
        parts.append((start, end, _clean_length(run, start, end, part)))
        start = end
    whole = len(unicodedata.normalize("NFC", _UNSEEN.sub("", run)))
    yield from parts if sum(size for *_, size in parts) == whole else [(0, len(run), whole)]


def _clean_length(run: str, start: int, end: int, part: str) -> int:
    """Looks at the neighbours too, by which a blank of no width stays or goes."""
    if end - start == 1 and _UNSEEN.match(run, start):
        return 0
    return len(unicodedata.normalize("NFC", part)) if end - start == 1 else len(part)


def _begins(character: str) -> bool:
    """Whether a character is composed with nothing before it: no mark, and no vowel or final of Hangul."""
    return not unicodedata.combining(character) and not "\u1160" <= character <= "\u11ff"


def _last_of_each(shifts: Iterable[Shift]) -> Iterator[Shift]:
    """Of several shifts at one place the last, where a dropped character was."""
    latest: dict[int, int] = {}
    for at, there in shifts:
        latest[at] = max(there, latest.get(at, there))
    return iter(latest.items())
