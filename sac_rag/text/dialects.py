"""Rows of delimited text as people's programs write it: the delimiter is judged from many rows, quotes one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SAMPLE_ROWS = 100
SAMPLE_CHARS = 20_000
"""What a dialect is judged from."""
DELIMITERS = ",;\t|^~:"

_SEP = re.compile(r"\A(?:sep=|\"sep=)([^\w\s\"]|\t)\"?[ \t]*\n")
"""What Excel reads as the delimiter of a file, and not as a row."""
_STRAY_LINES = 2
"""Line ends in a quoted cell from which on it is looked at whether they are cells of other rows."""


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    """Empty for a table of one column."""
    escapes: bool = False
    """Whether a backslash stands before a quotation mark that ends nothing."""


def dialect_of(text: str) -> tuple[Dialect, str]:
    """(the dialect, the text without a line that only names it). text: newlines as \\n."""
    if match := _SEP.match(text):
        return Dialect(match[1], '\\"' in text), text[match.end() :]
    sample = _sample(text)
    escapes = '\\"' in sample and '""' not in sample
    if not sample.strip():
        return Dialect(",", escapes), text
    regular = {d: _regular(_widths(sample, Dialect(d, escapes))) for d in DELIMITERS}
    best = max(DELIMITERS, key=lambda d: regular[d])
    return Dialect(best if regular[best] else "", escapes), text


def rows_of(text: str, dialect: Dialect) -> Iterator[list[str]]:
    """Cells of each row, in linear time. A quotation mark that is not closed before a delimiter, or that would swallow
    rows, is a character like others. text: newlines as \\n."""
    delimiter = re.escape(dialect.delimiter) or r"(?!)"
    inside = r'(?:[^"\\]++|""|\\.)*+' if dialect.escapes else r'(?:[^"]++|"")*+'
    quoted = re.compile(rf' *"({inside})"[ \t]*?(?={delimiter}|\n|\Z)', re.DOTALL)
    plain = re.compile(rf"(?:(?!{delimiter})[^\n])*+") if dialect.delimiter else re.compile(r"[^\n]*+")
    at, row, usual = 0, list[str](), 0
    while at <= len(text):
        match = quoted.match(text, at)
        if match and (not usual or not _swallows(match[1], dialect, usual)):
            value = match[1].replace('""', '"')
            row.append(value.replace('\\"', '"') if dialect.escapes else value)
        else:
            match = plain.match(text, at)
            assert match is not None
            row.append(match[0])
        at = match.end()
        if text.startswith(dialect.delimiter, at) and dialect.delimiter and at < len(text):
            at += len(dialect.delimiter)
            continue
        if at < len(text) or len(row) > 1 or row[0]:
            yield row
        usual = max(usual, len(row))
        at, row = at + 1, []


def _swallows(cell: str, dialect: Dialect, usual: int) -> bool:
    """Whether the lines of a quoted cell are rows of the table: most have as many delimiters as a row has."""
    lines = cell.split("\n")
    if len(lines) <= _STRAY_LINES or usual < 2:
        return False
    alike = sum(line.count(dialect.delimiter) == usual - 1 for line in lines[1:-1])
    return 2 * alike > len(lines) - 2


def _sample(text: str) -> str:
    lines = text[:SAMPLE_CHARS].split("\n")
    if len(text) > SAMPLE_CHARS and len(lines) > 1:
        lines.pop()  # cut within
    return "\n".join(lines[:SAMPLE_ROWS])


def _widths(sample: str, dialect: Dialect) -> list[int]:
    return [len(row) for row in rows_of(sample, dialect) if any(cell.strip() for cell in row)]


def _regular(widths: Sequence[int]) -> float:
    """How far a delimiter makes a table: the share of rows of the commonest width above one, weighed by that width.

    0 for none: under half of the rows, or a first row of one cell over a single one of several.
    """
    counted = Counter(width for width in widths if width > 1)
    if not counted:
        return 0.0
    (width, count), *_ = counted.most_common(1)
    if len(widths) > 1 and widths[0] == 1 and count == 1:
        return 0.0
    share = count / len(widths)
    return share * (2 - 1 / width) if share >= 0.5 else 0.0
