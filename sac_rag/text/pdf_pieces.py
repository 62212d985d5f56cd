"""The text of a PDF page as pieces with their places, as PDFium finds it."""

from __future__ import annotations

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from statistics import median
from typing import Any, NamedTuple

from sac_rag.text.layout import Piece
from sac_rag.text.pdf_seen import unseen_of

MOST_CHARS = 100_000
"""Characters of a page above which their places are not asked for."""

_HYPHENS = re.compile("[\x02\ufffe]|\u00ad(?=\r)")
"""What PDFium puts for a hyphen at the end of a line."""
_LINE = re.compile("[^\r\n\x02\ufffe]+")
_WORD = re.compile(r"\S+")
_DIGITS = re.compile(r"[\d)](?=[-+\u2212]?\d)")
"""A number's digit in front of another one, or of its sign."""

_UPRIGHT = "\u2e80"
"""From here on scripts may be written from top to bottom."""

Box = tuple[float, float, float, float]
"""(left, bottom, right, top)."""


class Pieces(NamedTuple):
    """What a page's text is made of."""

    pieces: list[Piece]
    """Runs of text without a wide gap, in the file's own sequence."""
    edges: Box
    mapped: bool
    """Whether the file says of most letters which they are."""
    unseen: bool
    """Whether there is text besides that a reader of the page does not see."""


def pieces_of(sheet: Any) -> Pieces:
    """The text of a page that is seen.

    A page whose text is turned by a right angle, or upside down, is turned back.
    """
    page = sheet.get_textpage()
    try:
        whole = _HYPHENS.sub("\ufffe", _text_of(page))
        unseen = set(unseen_of(sheet, page, whole))
        text = "".join(" " if i in unseen else letter for i, letter in enumerate(whole)) if unseen else whole
        box = _Boxes(page, text)
        pieces: list[Piece] = []
        for line in _LINE.finditer(text):
            for start, end, shown in _runs(text, line.start(), line.end(), box):
                if text[end : end + 1] == "\ufffe" and end == line.end():
                    shown += "-"
                left, bottom, right, top = _around(box(start), box(end - 1))
                apart = end - start > 1 and box.is_turned(start)
                pieces.append(Piece(shown, left, bottom, right, top, len(pieces), apart))
        edges = box.turned(sheet.get_bbox())  # its boxes may be those of its parents
        within = [piece for piece in pieces if _is_within(piece, edges)]
        return Pieces(within, edges, _is_mapped(page, text), bool(unseen) or len(within) < len(pieces))
    finally:
        page.close()


def _is_mapped(page: Any, text: str) -> bool:
    """Whether most letters of a sample have a meaning; PDFium shows the numbers of glyphs as letters otherwise."""
    import pypdfium2.raw as c

    at = [i for i, letter in enumerate(text[:2000]) if not letter.isspace() and letter != "\ufffe"]
    unknown = sum(c.FPDFText_HasUnicodeMapError(page.raw, i) == 1 for i in at)
    return 2 * unknown <= len(at)


def _is_within(piece: Piece, edges: Box) -> bool:
    """Whether a piece is seen, at least in part. Those without a place are."""
    left, bottom, right, top = edges
    is_placed = piece.right > piece.left or piece.top > piece.bottom
    return not is_placed or (piece.right > left and piece.left < right and piece.top > bottom and piece.bottom < top)


class _Boxes:
    """Places of characters by index, as if the page's text stood upright."""

    def __init__(self, page: Any, text: str) -> None:
        import pypdfium2.raw as c

        self._raw, self._get, self._rect = page.raw, c.FPDFText_GetLooseCharBox, c.FS_RECTF()
        self._generated, self._angle = c.FPDFText_IsGenerated, c.FPDFText_GetCharAngle
        self._place = ctypes.byref(self._rect)
        self.off = page.count_chars() > MOST_CHARS
        self._quarters = self._most = 0
        if text and not self.off:
            self._quarters = self._direction(text)

    def __call__(self, index: int) -> Box:
        if self.off or not self._get(self._raw, index, self._place):
            return (0.0, 0.0, 0.0, 0.0)
        return self.turned((self._rect.left, self._rect.bottom, self._rect.right, self._rect.top))

    def turned(self, box: Box) -> Box:
        """A place on the page, turned as its text is."""
        left, bottom, right, top = box
        match self._quarters:
            case 1:
                return bottom, -right, top, -left
            case 2:
                return -right, -top, -left, -bottom
            case 3:
                return -top, left, -bottom, right
        return left, bottom, right, top

    def is_turned(self, index: int) -> bool:
        """Whether a character stands otherwise than most."""
        return not self.off and self._stands(index) % 4 != self._most

    def _stands(self, index: int) -> int:
        """Its angle in quarters of a circle, by PDFium's own sense of turning."""
        return round(self._angle(self._raw, index) / (math.pi / 2))

    def _direction(self, text: str) -> int:
        """Quarters by which most text is turned against the clock, by a sample of its words."""
        words = [match.span() for match in islice(_WORD.finditer(text), 400) if match.end() - match.start() > 1]
        (self._most, _), *_ = Counter(self._stands(start) % 4 for start, _ in words).most_common(1) or [(0, 0)]
        if self._most % 2 == 0:
            return self._most
        up = 0
        for start, end in words:
            first, last = self(start), self(end - 1)
            up += (last[1] > first[1]) - (last[1] < first[1])
        return 1 if up >= 0 else 3

    def is_made_up(self, index: int) -> bool:
        """Whether PDFium put this character where the file has none."""
        return self._generated(self._raw, index) == 1


def _text_of(page: Any) -> str:
    """The page's characters, one each by PDFium's own index."""
    import pypdfium2.raw as c

    count = page.count_chars()
    text: str = page.get_text_range() if count else ""
    if len(text) == count:
        return text
    codes = (c.FPDFText_GetUnicode(page.raw, i) for i in range(count))
    return "".join(chr(code) if code < 0x110000 else "\ufffd" for code in codes)


def _runs(text: str, start: int, end: int, box: _Boxes) -> Iterator[tuple[int, int, str]]:
    """(start, end, text) of the parts of a line between wide gaps."""
    words = [match.span() for match in _WORD.finditer(text, start, end)]
    if not box.off:
        words = [part for word in words for part in _level(text, word, box)]
    if not words:
        return
    if box.off:
        yield words[0][0], words[-1][1], text[words[0][0] : words[-1][1]]
        return
    if spaced := _letter_spaced(text, words, box):
        words = spaced
    begin, shown = words[0][0], _solid(text, words[0], box)
    for before, after in pairwise(words):
        a, b = box(before[1] - 1), box(after[0])
        height = max(a[3] - a[1], b[3] - b[1], 1.0)
        is_level = text[after[0]] >= _UPRIGHT or not _steps_down(a, b) or box.is_turned(after[0])
        if max(b[0] - a[2], a[0] - b[2]) > height or not is_level:
            yield begin, before[1], shown
            begin, shown = after[0], ""
        elif not spaced:
            shown += text[before[1] : after[0]]
        else:
            shown += " "
        shown += _solid(text, after, box)
    yield begin, words[-1][1], shown


def _level(text: str, word: tuple[int, int], box: _Boxes) -> list[tuple[int, int]]:
    """A word in parts that are on one line each: a column of letters is no word, unless its script is upright."""
    start, end = word
    if end - start < 2 or text[start] >= _UPRIGHT or not _steps_down(box(start), box(end - 1)) or box.is_turned(start):
        return [word]
    ends = [i + 1 for i in range(start, end - 1) if _steps_down(box(i), box(i + 1))]
    return list(pairwise([start, *ends, end]))


def _steps_down(a: Box, b: Box) -> bool:
    return abs(a[1] - b[1]) > 0.6 * max(a[3] - a[1], b[3] - b[1], 1.0)


def _solid(text: str, word: tuple[int, int], box: _Boxes) -> str:
    """A word; those put together of single letters lie over blanks that PDFium made up. A raised number behind another
    one is set off by ^, as it would be read as the end of it."""
    start, end = word
    marks = [match.start() + start for match in _DIGITS.finditer(text[start:end]) if not box.off]
    marks = [at + 1 for at in marks if _is_raised(box(at), box(at + 1))]
    parts = [text[a:b] for a, b in pairwise([start, *marks, end])]
    return "".join("^".join(parts).split())


def _is_raised(base: Box, mark: Box) -> bool:
    height, own = base[3] - base[1], mark[3] - mark[1]
    return 0 < own < 0.85 * height and mark[1] - base[1] > 0.15 * height


def _letter_spaced(text: str, words: Sequence[tuple[int, int]], box: _Boxes) -> list[tuple[int, int]]:
    """Words of a line whose letters are set apart one by one; empty if it is an ordinary line.

    Either letters of a proportional font at one distance from each other, or nothing but single letters.
    """
    single = sum(end - start == 1 for start, end in words)
    if len(words) < 2 or 4 * single < len(words) or not any(box.is_made_up(start - 1) for start, _ in words[1:]):
        return []
    at = [i for start, end in words for i in range(start, end)]
    if len(at) < 5 or sum(text[i].isalnum() for i in at) < 0.7 * len(at):  # dots of a table of contents
        return []
    boxes = [box(i) for i in at]
    steps = [b[0] - a[0] for a, b in pairwise(boxes)]
    widths = [b[2] - b[0] for b in boxes]
    usual = median(steps)
    if usual <= 0:
        return []
    even = [abs(step - usual) < 0.08 * usual for step in steps]
    # Steps are set by hand where they are even and the letters are not as wide as a step.
    apart = sum(is_even and abs(width - usual) > 0.1 * usual for is_even, width in zip(even, widths, strict=False))
    if sum(even) >= 0.6 * len(even) and 4 * apart >= sum(even) and usual < 2 * max(widths):
        ends = [step > 1.6 * usual for step in steps]
    elif single == len(words) and all(text[i].isalpha() for i in at) and not _is_sequence(text, at):
        gaps = [b[0] - a[2] for a, b in pairwise(boxes)]
        if median(gaps) > 0.6 * (boxes[0][3] - boxes[0][1]):
            return []
        ends = [gap > 2 * max(median(gaps), 0.1) for gap in gaps]
    else:
        return []
    found, begin = [], at[0]
    for i, j, is_end in zip(at, at[1:], ends, strict=False):
        if is_end:
            found.append((begin, i + 1))
            begin = j
    return [*found, (begin, at[-1] + 1)]


def _is_sequence(text: str, at: Sequence[int]) -> bool:
    """A B C D E are names of columns, not a word."""
    return all(ord(text[j]) - ord(text[i]) == 1 for i, j in pairwise(at))


def _around(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
