"""What a parser hands back, and the builder that keeps offsets right while text is put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sac_rag.text.cleaning import Refused, clean

Heading = tuple[int, int, str]
"""(character offset, level counted from 1, title)."""

TITLE_CHARS = 120
MAX_LEVEL = 6


@dataclass
class Parsed:
    """Clean text with its headings, offsets ascending. `meta` holds JSON values."""

    text: str
    headings: list[Heading] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


class TooLong(Refused):
    """A text over the limit: no reason to leave a part of it out."""


class Extract:
    """Joins clean pieces by newlines; offsets taken on the way stay true because every piece is already NFC."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.length = 0
        self.headings: list[Heading] = []
        self.notices: list[str] = []
        """What a user should know about what was lost or guessed."""
        self.hidden: Counter[str] = Counter()
        """What a reader does not see, by kind ("texts", "slides"): left out, and told in a notice by `finish`."""
        self._parts: list[str] = []
        self._blank = False

    def add(self, text: str, *, blank: bool = False) -> int:
        """Append a piece on a new line, after an empty line if `blank`; returns its offset. Empty pieces vanish."""
        piece = clean(text).strip("\n")
        if not piece.strip():
            self._blank |= blank
            return self.length
        if self._parts:
            self._put("\n\n" if blank or self._blank else "\n")
        self._blank, start = False, self.length
        self._put(piece)
        return start

    def gap(self) -> None:
        """Put an empty line before the next piece."""
        self._blank = True

    def heading(self, level: int, title: str) -> None:
        """Append a heading between empty lines and remember where it stands."""
        short = short_title(clean(title))
        if short:
            self.headings.append((self.add(title, blank=True), level, short))
            self.gap()

    def mark(self) -> tuple[int, int, int, bool]:
        """Where the text stands, for `back_to`."""
        return len(self._parts), self.length, len(self.headings), self._blank

    def back_to(self, mark: tuple[int, int, int, bool]) -> None:
        """Take back what was added since. Notices stay."""
        parts, self.length, headings, self._blank = mark
        del self._parts[parts:], self.headings[headings:]

    def finish(self, **meta: Any) -> Parsed:
        """The whole; empty meta values are left out."""
        counts = [f"{count} {what}" for what, count in self.hidden.items() if count]
        hidden = [f"hidden and not read: {', '.join(counts)}"] if counts else []
        meta["notices"] = [*self.notices, *hidden]
        return Parsed("".join(self._parts), self.headings, {k: v for k, v in meta.items() if v})

    def _put(self, piece: str) -> None:
        self.length += len(piece)
        if self.length > self.max_chars:
            raise TooLong(f"text over {self.max_chars} characters")
        self._parts.append(piece)


def short_title(title: str) -> str:
    """A title on one line, cut to TITLE_CHARS."""
    return " ".join(title[: 20 * TITLE_CHARS].split())[:TITLE_CHARS].rstrip()


def heading_paths(headings: Sequence[Heading]) -> tuple[tuple[int, str], ...]:
    """(offset, "Guide > Install") for each heading, in order of offset."""
    paths: list[tuple[int, str]] = []
    open_: list[tuple[int, str]] = []
    for offset, level, title in sorted(headings, key=lambda h: h[0]):
        level = min(level, MAX_LEVEL)  # bounds the path of a hostile outline
        while open_ and open_[-1][0] >= level:
            open_.pop()
        open_.append((level, title))
        paths.append((offset, " > ".join(t for _, t in open_)))
    return tuple(paths)
