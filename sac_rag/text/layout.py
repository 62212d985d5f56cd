"""Pieces of text on a page into reading order: lines, columns side by side, rows of tables. Units are points, y up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

GUTTER = 6.0
"""Narrowest empty band between two columns."""
MOST_LINES = 400
"""Lines of a page above which its own order is taken: looking for columns takes quadratic time."""


TOUCHING = 0.1
"""Gap, in heights of the line, under which two pieces belong to one word."""


@dataclass(frozen=True)
class Piece:
    """A run of text on one line; `order` is its place in the page's own sequence."""

    text: str
    left: float
    bottom: float
    right: float
    top: float
    order: int = 0
    apart: bool = False
    """Turned against the page, such as a stamp on its edge: a line of its own."""


Line = list[Piece]


def page_text(pieces: Sequence[Piece]) -> str:
    """The page's text, an empty line where lines stand further apart.

    The file's own sequence is followed, except where it jumps between columns of prose, which are read one after the
    other, or draws a table column by column, which is read row by row.
    """
    return _text(_ordered(list(pieces)))


def lines_of(pieces: Iterable[Piece]) -> list[Line]:
    """Pieces by visual line from top to bottom, each line from left to right."""
    lines: list[Line] = []
    for piece in sorted(pieces, key=lambda p: (-(p.bottom + p.top), p.left)):
        if lines and _beside(lines[-1][0], piece):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda p: p.left) for line in lines]


def _ordered(pieces: list[Piece]) -> list[Line]:
    """Lines in reading order."""
    lines = lines_of(pieces)
    if len(lines) <= MOST_LINES and (found := _gutter(lines)):
        first, last, middle = found
        band = [piece for line in lines[first : last + 1] for piece in line]
        sides = [p for p in band if p.right <= middle], [p for p in band if p.left >= middle]
        above = [piece for line in lines[:first] for piece in line]
        below = [piece for line in lines[last + 1 :] for piece in line]
        if all(map(_is_prose, sides)):
            if _runs_left_to_right(band):
                return _ordered(above) + _ordered(sides[0]) + _ordered(sides[1]) + _ordered(below)
            return _ordered(above) + _ordered(sides[1]) + _ordered(sides[0]) + _ordered(below)
        if _is_table(lines[first : last + 1], sides):
            return _ordered(above) + [_read(line) for line in lines[first : last + 1]] + _ordered(below)
    return _natural(pieces)


def _natural(pieces: Iterable[Piece]) -> list[Line]:
    """Lines in the file's own sequence; pieces that follow each other on one line share it."""
    lines: list[Line] = []
    for piece in sorted(pieces, key=lambda p: p.order):
        if lines and _beside(lines[-1][-1], piece):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [_read(line) for line in lines]


def _gutter(lines: Sequence[Line]) -> tuple[int, int, float] | None:
    """(first line, last line, x) of the empty band that most lines have text on both sides of; None under three."""
    best: tuple[int, int, int, float] | None = None
    tried: set[tuple[int, float]] = set()
    for at, line in enumerate(lines):
        for before, after in zip(line, line[1:], strict=False):
            low, high = before.right, after.left
            if high - low < GUTTER or (at, low) in tried:
                continue
            first = last = at
            both = 1
            for step in (1, -1):
                other = at + step
                while 0 <= other < len(lines):
                    lower, upper = _free(lines[other], low, high)
                    if upper - lower < GUTTER:
                        break
                    low, high = lower, upper
                    is_both = lines[other][0].left < low and lines[other][-1].right > high
                    both += is_both
                    if is_both:
                        tried.add((other, low))
                        first, last = min(first, other), max(last, other)
                    other += step
            if both >= 3 and (best is None or both > best[0]):
                best = both, first, last, (low + high) / 2
    return best[1:] if best else None


def _free(line: Line, low: float, high: float) -> tuple[float, float]:
    """The part of low..high that the line leaves empty, the wider one beside a piece that stands within."""
    for piece in line:
        if piece.right <= low or piece.left >= high:
            continue
        low, high = (low, piece.left) if piece.left - low >= high - piece.right else (piece.right, high)
    return low, high


def _is_prose(side: Sequence[Piece]) -> bool:
    """Whether lines go on in the next one: several words each, and beginnings within a sentence."""
    texts = [_joined(_read(line)) for line in lines_of(side)]
    if len(texts) < 3 or sum(len(text.split()) for text in texts) < 2.5 * len(texts):
        return _is_caseless(side, texts)
    inner = [text.lstrip("\"'(\u201c\u2018") for text in texts[1:]]
    return sum(text[:1].islower() for text in inner) >= 0.4 * len(inner) or _is_caseless(side, texts)


def _is_caseless(side: Sequence[Piece], texts: Sequence[str]) -> bool:
    """Prose of a script without case: most lines fill their column."""
    letters = [c for text in texts for c in text if c.isalpha()]
    if len(texts) < 3 or not letters or sum(c.lower() == c.upper() for c in letters) < 0.8 * len(letters):
        return False
    widths = [line[-1].right - line[0].left for line in lines_of(side)]
    return len(letters) >= 6 * len(texts) and median(widths) >= 0.8 * max(widths)


def _is_table(lines: Sequence[Line], sides: tuple[Sequence[Piece], Sequence[Piece]]) -> bool:
    """Whether a band is short cells on common baselines."""
    pieces = [piece for line in lines for piece in line]
    words = sum(len(piece.text.split()) for piece in pieces)
    level = sum(max(p.bottom for p in line) - min(p.bottom for p in line) < 1 for line in lines)
    return words <= 4 * len(pieces) and level >= 0.8 * len(lines) and not any(map(_is_prose, sides))


def _beside(a: Piece, b: Piece) -> bool:
    """Whether two pieces share a line: the lower of them overlaps the other by more than half its height."""
    if a.apart or b.apart:
        return False
    height = min(a.top - a.bottom, b.top - b.bottom)
    return min(a.top, b.top) - max(a.bottom, b.bottom) > 0.5 * max(height, 0.1)


def _read(line: Line) -> Line:
    """A line in the direction of its script."""
    return sorted(line, key=lambda p: p.left, reverse=not _runs_left_to_right(line))


def _runs_left_to_right(pieces: Iterable[Piece]) -> bool:
    """Whether fewer letters are Hebrew or Arabic than not."""
    letters = [c for p in pieces for c in p.text if c.isalpha()]
    return 2 * sum("\u0590" <= c <= "\u08ff" or "\ufb1d" <= c <= "\ufefc" for c in letters) <= len(letters)


def _joined(line: Line) -> str:
    """The line's text; pieces that touch, such as an exponent and its base, are one word."""
    parts: list[str] = []
    for before, piece in zip([None, *line], line, strict=False):
        if before:
            gap = max(piece.left - before.right, before.left - piece.right)
            apart = gap >= TOUCHING * (piece.top - piece.bottom) and not piece.text.startswith(" ")
            parts.append(" " if apart else "")
        parts.append(piece.text)
    return "".join(parts).strip()


def _text(lines: Sequence[Line]) -> str:
    """Lines joined; an empty line where the step down is over 1.6 times the usual one, or back up.

    A usual step is at most 1.5 heights of a line: pages of few lines have none of their own.
    """
    steps = [a[0].bottom - b[0].bottom for a, b in zip(lines, lines[1:], strict=False)]
    down = [step for step in steps if step > 1]
    usual = min(median(down), 1.5 * median(line[0].top - line[0].bottom for line in lines)) if down else 0.0
    parts: list[str] = []
    for line, step in zip(lines, [0.0, *steps], strict=False):
        if not (text := _joined(line)):
            continue
        if parts:
            parts.append("\n\n" if step > 1.6 * usual or step < -1 else "\n")
        parts.append(text)
    return "".join(parts)
