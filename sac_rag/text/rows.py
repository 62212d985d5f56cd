"""Rows of a table within a text: one line a row, each cell under its column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_SPAN = 100
"""Columns, and rows, that one cell takes at the most."""


def row_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each row as "a | b | c"; one that says nothing is empty.

    An empty cell keeps its place between others, so that a value stays under its column; columns that are empty in all
    rows are left out, and so are empty cells behind the last value of a row.
    """
    width = max(map(len, rows), default=0)
    used = [i for i in range(width) if any(i < len(row) and row[i].strip() for row in rows)]
    for row in rows:
        cells = [" ".join(row[i].split()) if i < len(row) else "" for i in used]
        while cells and not cells[-1]:
            cells.pop()
        yield " | ".join(cells).strip()


class Grid:
    """Cells of a table put down one after the other, where some span several columns or rows."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self._below: dict[int, int] = {}
        """Columns that a cell from further up still takes, by the number of rows."""

    def row(self) -> None:
        """Begin a row."""
        self.rows.append([])

    def cell(self, text: str, columns: int = 1, rows: int = 1) -> None:
        """Put a cell into the next free place of the row; what it spans besides stays empty."""
        if not self.rows:
            self.row()
        self._skip()
        row = self.rows[-1]
        for i in range(min(max(columns, 1), MOST_SPAN)):
            if rows > 1:
                self._below[len(row)] = min(rows, MOST_SPAN) - 1
            row.append("" if i else text)

    def _skip(self) -> None:
        row = self.rows[-1]
        while left := self._below.get(len(row), 0):
            self._below[len(row)] = left - 1
            row.append("")
