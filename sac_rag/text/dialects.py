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
    quote: str = '"'


def dialect_of(text: str) -> tuple[Dialect, str]:
    """(the dialect, the text without a line that only names it). text: newlines as \\n."""
    if match := _SEP.match(text):
        return Dialect(match[1], '\\"' in text), text[match.end() :]
    sample = _sample(text)
    escapes = '\\"' in sample and '""' not in sample
    if not re.search(r"\w", sample):
        return Dialect(max(DELIMITERS, key=sample.count), escapes), text
    quote = "'" if _is_single_quoted(sample) else '"'
    widths = {d: _widths(sample, Dialect(d, escapes, quote)) for d in DELIMITERS}
    for judge in (_regular, _ragged):
        best = max(DELIMITERS, key=lambda d: judge(widths[d]))
        if judge(widths[best]):
            return Dialect(best, escapes, quote), text
    return Dialect("", escapes, quote), text


def rows_of(text: str, dialect: Dialect) -> Iterator[list[str]]:
    """Cells of each row, in linear time. A quotation mark that is not closed before a delimiter, or that would swallow
    rows, is a character like others. text: newlines as \\n."""
    delimiter = re.escape(dialect.delimiter) or r"(?!)"
    q = dialect.quote
    inside = rf"(?:[^{q}\\]++|{q}{q}|\\.)*+" if dialect.escapes else rf"(?:[^{q}]++|{q}{q})*+"
    quoted = re.compile(rf" *{q}({inside}){q}[ \t]*?(?={delimiter}|\n|\Z)", re.DOTALL)
    plain = re.compile(rf"(?:(?!{delimiter})[^\n])*+") if dialect.delimiter else re.compile(r"[^\n]*+")
    at, row, usual = 0, list[str](), 0
    while at <= len(text):
        match = quoted.match(text, at)
        if match and (not usual or not _swallows(match[1], dialect, usual)):
            value = match[1].replace(2 * q, q)
            row.append(value.replace(f"\\{q}", q) if dialect.escapes else value)
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


def _is_single_quoted(sample: str) -> bool:
    """Whether cells stand between single quotation marks: in most rows, and never between double ones."""
    rows = [line for line in sample.split("\n") if line.strip()]
    marked = sum(bool(re.search(r"(?:^|[,;\t|])'[^'\n]*'(?:[,;\t|]|$)", row)) for row in rows)
    return '"' not in sample and 2 * marked > len(rows)


def _ragged(widths: Sequence[int]) -> float:
    """How far a delimiter makes a table whose rows differ in width, or several tables: a header of several cells above
    rows of several, or most rows as wide as a neighbour. 0 for none."""
    wide = sum(width > 1 for width in widths)
    alike = sum(
        width > 1 and width in (*widths[max(0, i - 1) : i], *widths[i + 1 : i + 2]) for i, width in enumerate(widths)
    )
    if len(widths) > 1 and (
        (widths[0] > 1 and wide >= 0.9 * len(widths)) or (len(widths) > 3 and 2 * alike > len(widths))
    ):
        return wide / len(widths)
    return 0.0


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
