"""Rows of delimited text, and of sheets, as records: one is one paragraph of "column: value" lines."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import newlines
from sac_rag.text.dialects import Dialect, dialect_of, rows_of
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed
from sac_rag.text.parts import Parts

_LOOKED_AT = 50
"""Rows from which the header is judged."""
_NEAR = 8
"""Rows from which it is judged whether a table begins within a file."""
_SIGNS = "$\u20ac\u00a3\u00a5"
_NUMBER = re.compile(
    rf"[-+(]{{0,2}}[{_SIGNS}]?[\d.,' \u00a0]*\d ?[%{_SIGNS}]?\)?|\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}.*"
)
_YEAR = re.compile(r"(?:19|20)\d\d")
_AS_TEXT = re.compile(r'="(.*)"', re.DOTALL)
"""How Excel is told to keep a number as it is written: ="00123"."""
_RULE = re.compile(r"[-=+:|]{3,}")

Row = list[str]


def csv_rows(data: bytes, config: ReadConfig) -> Parsed:
    """Rows as "column: value" lines; delimiter, quotes and header are judged from many rows."""
    out = Extract(config.text_chars)
    text = newlines(decode(data, tell=out.notices.append, encoding=config.encoding)).replace("\0", "")
    dialect, text = dialect_of(text)
    write_table(out, rows_of(text, dialect))
    return out.finish()


def tsv_rows(data: bytes, config: ReadConfig) -> Parsed:
    """Like csv_rows, with tabs where there are any."""
    out = Extract(config.text_chars)
    text = newlines(decode(data, tell=out.notices.append, encoding=config.encoding)).replace("\0", "")
    dialect, rest = (Dialect("\t"), text) if "\t" in text else dialect_of(text)
    write_table(out, rows_of(rest, dialect))
    return out.finish()


def write_table(out: Extract, rows: Iterable[Row], level: int = 1) -> None:
    """Write rows under the names of their columns; what stands above these is a title, or text of its own.

    Behind an empty row or a title a table of other columns may begin. A row that cannot be text is left out, and told.
    """
    ahead, parts = _Ahead(rows), Parts(out, "rows")
    while ahead.look(1):
        _section(out, ahead, level, parts)
    parts.tell()


class _Ahead:
    """Rows that say something, looked at before they are taken; `apart` where an empty one stands in front."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self._seen: deque[tuple[Row, bool]] = deque()

    def look(self, count: int) -> list[tuple[Row, bool]]:
        apart = False
        while len(self._seen) < count and (row := next(self._rows, None)) is not None:
            cells = [_AS_TEXT.sub(r"\1", cell.strip()) for cell in row]
            if not any(cells):
                apart = True
            elif not all(_RULE.fullmatch(cell) for cell in cells if cell):
                self._seen.append((cells, apart))
                apart = False
        return list(islice(self._seen, count))

    def take(self) -> tuple[Row, bool]:
        self.look(1)
        return self._seen.popleft()


def _section(out: Extract, ahead: _Ahead, level: int, parts: Parts) -> None:
    """Write one table with what stands above it."""
    near = ahead.look(_LOOKED_AT)
    wide = list(accumulate(_filled(row) > 1 for row, _ in near))
    ends = (i for i in range(1, len(near)) if wide[i - 1] > 1 and _begins_table(near, i))
    head = [row for row, _ in near[: next(ends, len(near))]]
    first = _header(head)
    for row in head[:first]:
        words = " ".join(filter(None, row))
        if words.startswith("#") or first > 1:
            out.add(words, blank=True)
        else:
            out.heading(level, words)
        ahead.take()
    names: Row = []
    if not _is_record(head[first:]):
        names = [cell.removeprefix("#") if i == 0 else cell for i, cell in enumerate(head[first])]
        if not any(name and any(i < len(row) and row[i] for row in head[first + 1 :]) for i, name in enumerate(names)):
            names = []  # nothing stands under it
    if names:
        ahead.take()
        if (both := _two_rows(names, head[first + 1 :])) is not None:
            names = both
            ahead.take()
    is_first = True
    while near := ahead.look(_NEAR + 1):
        # The row at hand stands behind another one of this table, or of its header.
        if (names or not is_first) and _begins_table([([], False), *near], 1, len(names)):
            return
        row, _ = ahead.take()
        is_first = False
        with parts.one():
            if len(row) == 1 and len(names) > 1:  # a note, or a heading of some rows
                out.add(row[0], blank=True)
                out.gap()
            else:
                _row(out, names, row)


def _begins_table(rows: Sequence[tuple[Row, bool]], at: int, width: int = 0) -> bool:
    """Whether the row at `at` opens a table of its own: behind an empty row, or a title, and with a header that names
    columns of numbers, or of another `width` than the table before it."""
    row, apart = rows[at]
    if not apart and _filled(row) > 1:
        return False
    start = next((i for i in range(at, min(at + 3, len(rows))) if _filled(rows[i][0]) > 1), None)
    if start is None:
        return False
    below = []
    for cells, is_apart in rows[start + 1 : start + _NEAR]:
        if is_apart or _filled(cells) < 2:
            break
        below.append(cells)
    header = rows[start][0]
    if not below or any(_NUMBER.fullmatch(cell) and not _YEAR.fullmatch(cell) for cell in header):
        return False
    if any(_is_numeric(i, below) for i, cell in enumerate(header) if cell):
        return True
    return start > at and len(below) > 1 and 0 < width != _filled(header)


def _filled(row: Row) -> int:
    return sum(map(bool, row))


def _is_numeric(column: int, rows: Sequence[Row]) -> bool:
    """Whether a column has numbers, and nothing else but empty cells."""
    values = [row[column] for row in rows if column < len(row) and row[column]]
    return bool(values) and all(_NUMBER.fullmatch(value) for value in values)


def _two_rows(names: Row, rows: Sequence[Row]) -> Row | None:
    """Names of columns in two rows, the first of which names groups of columns; None where there is but one."""
    if len(rows) < 2 or not names:
        return None
    below, others = rows[0], rows[1:]
    if any(_NUMBER.fullmatch(cell) and not _YEAR.fullmatch(cell) for cell in below):
        return None
    unnamed = [i for i, cell in enumerate(below) if cell and (i >= len(names) or not names[i])]
    if not any(_is_numeric(i, others) for i in unnamed) or unnamed == [0]:
        return None
    both, group = [], ""
    for i in range(max(len(names), len(below))):
        above = names[i] if i < len(names) else ""
        own = below[i] if i < len(below) else ""
        group = above or (group if own else "")
        both.append(group if group == own else f"{group} {own}".strip())
    return both


def _header(rows: Sequence[Row]) -> int:
    """Index of the row that names the columns: the first as wide as most rows, behind titles, comments and notes."""
    widths = Counter(len(row) for row in rows if _filled(row) > 1)
    if not widths:
        return 0
    usual = max(widths, key=lambda width: (widths[width], width))
    if widths[usual] < 2:
        return 0
    for index, row in enumerate(rows):
        cells = _filled(row)
        # A header may lack the name of the first column, or of the last.
        named = len(row) >= usual - 1 if cells > 1 else not row[0] and len(row) == usual
        if named and row[0].startswith("#"):  # a comment, unless only rows of values come behind it
            named = cells == usual and _is_record(rows[index + 1 :]) and len(rows) > index + 1
        if named:
            return index
    return 0


def _is_record(rows: Sequence[Row]) -> bool:
    """Whether the first row is one like the others: alone, or with numbers where they have numbers."""
    if len(rows) < 2:
        return True
    first, others = rows[0], rows[1:]
    for i, cell in enumerate(first):
        below = [row[i] for row in others if i < len(row) and row[i]]
        if not _NUMBER.fullmatch(cell) or not below or _YEAR.fullmatch(cell):
            continue
        if sum(bool(_NUMBER.fullmatch(value)) for value in below) >= 0.8 * len(below):
            return True
    return False


def _row(out: Extract, names: Sequence[str], row: Row) -> None:
    out.gap()
    for i, value in enumerate(row):
        if value:
            name = names[i] if i < len(names) else ""
            out.add(f"{name or f'column {i + 1}'}: {value}")
