"""Workbooks to text: sheets as tables, with what was noted on their cells."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused
from sac_rag.text.extract import Extract, Parsed
from sac_rag.text.markup import Package, attribute, check_zip, local
from sac_rag.text.sheet_looks import Cell, Look, looks_of, part_of, place_of
from sac_rag.text.tables import csv_rows, write_table

MOST_CELLS = 4_000_000
"""Cells between the first and the last of a sheet, empty ones included, above which gaps are closed."""
_CELL = re.compile(rb'(<c\b[^>]*?\sr=")([A-Z]{1,3})(\d{1,7})"')
_ROW = re.compile(rb'(<row\b[^>]*?\sr=")(\d{1,7})"')
_PLACES = re.compile(rb"<dimension\b[^>]*>|<mergeCells\b.*?</mergeCells>", re.DOTALL)
_UNCOMPUTED = re.compile(rb"</f>\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>|<f\b[^>]*/>\s*(?:<v\s*/>|<v>\s*</v>)?\s*</c>")
_SHEET = re.compile(r"xl/worksheets/[^/]*\.xml")


def sheets(data: bytes, config: ReadConfig) -> Parsed:
    """Every sheet of a workbook (xlsx, xlsm, xlsb, xls, ods) like csv_rows, as values that were last computed; notes on
    cells behind. Web pages and text under the name of a workbook are read too.

    Numbers stand as the sheet shows them, days and times as 2024-05-01 08:30:00. Hidden sheets, rows and columns are
    left out and told, and so are cells whose format shows nothing; of binary workbooks (xlsb, xls) hidden sheets alone
    are known, and numbers stand as they are stored.
    """
    import python_calamine

    if other := _as_other_format(data, config):
        return other
    out = Extract(config.text_chars)
    package, left = None, _Left()
    if data.startswith(b"PK"):
        check_zip(data, "workbook")
        data = _closed_up(data)
        package = Package(data, "workbook")
    look_of = looks_of(package)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        seen = [one.name for one in book.sheets_metadata if one.visible == python_calamine.SheetVisibleEnum.Visible]
        for name in book.sheet_names:
            if name not in seen:
                continue
            sheet = book.get_sheet_by_name(name)
            look = look_of(name)
            rows = left.take_out(name, _rows(sheet, look, left), sheet.start or (0, 0), look)
            if rows and len(seen) > 1:
                out.heading(1, name)
            write_table(out, rows, level=min(len(seen), 2))
            for place, note in _notes(package, name):
                if place is None or not look.is_hidden(place):
                    out.add(note, blank=True)
    except python_calamine.PasswordError:
        raise Refused("encrypted workbook") from None
    except (python_calamine.CalamineError, OSError):
        raise Refused("damaged workbook") from None
    if hidden := [name for name in book.sheet_names if name not in seen]:
        out.notices.append(f"{len(hidden)} hidden sheets not read: {', '.join(hidden)}"[:300])
    out.notices += left.notices()
    if count := _uncomputed(package):
        out.notices.append(f"formulas without a stored value left out: {count}")
    return out.finish()


@dataclass
class _Left:
    """What is left out of sheets as it is hidden there."""

    sheets: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name -> how many rows, and columns, that say something."""
    cells: int = 0
    """Whose format shows nothing."""

    def take_out(self, name: str, rows: list[list[str]], start: Cell, look: Look) -> list[list[str]]:
        """The rows of a sheet, whose first cell is `start`, without hidden rows and columns."""
        top, left = start
        width = max(map(len, rows), default=0)
        down = {i for first, last in look.rows for i in range(max(first - top, 0), min(last - top + 1, len(rows)))}
        across = {i for first, last in look.columns for i in range(max(first - left, 0), min(last - left + 1, width))}
        if not down and not across:
            return rows
        said_down = sum(any(rows[i]) for i in down)
        said_across = sum(any(i < len(row) and row[i] for row in rows) for i in across)
        if said_down or said_across:
            self.sheets[name] = (said_down, said_across)
        return [
            [cell for i, cell in enumerate(row) if i not in across] for n, row in enumerate(rows) if n not in down
        ]

    def notices(self) -> Iterator[str]:
        if self.sheets:
            rows, columns = (sum(counts[kind] for counts in self.sheets.values()) for kind in (0, 1))
            what = " and ".join(f"{n} hidden {kind}" for n, kind in ((rows, "rows"), (columns, "columns")) if n)
            yield f"{what} not read, of the sheets {', '.join(self.sheets)}"[:300]
        if self.cells:
            yield f"cells whose format shows nothing left out: {self.cells}"


def _rows(sheet: Any, look: Look, left: _Left) -> list[list[str]]:
    """The cells of a sheet from its first on, as they are shown."""
    top, first = sheet.start or (0, 0)
    rows = []
    for i, values in enumerate(sheet.to_python(skip_empty_area=True), top):
        cells = []
        for j, value in enumerate(values, first):
            text = look.text((i, j), value)
            left.cells += text == ""
            cells.append(_shown(value) if text is None else text)
        rows.append(cells)
    _fill_down(rows, sheet)
    return rows


def _as_other_format(data: bytes, config: ReadConfig) -> Parsed | None:
    """What many programs export as a workbook: a web page with a table, or lines with tabs."""
    from sac_rag.text.parsers import html

    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<table" in data[:200_000].lower():
        return html(data, config)
    lines = data[:4096].split(b"\n")
    if len(lines) > 2 and b"\0" not in data[:4096] and all(b"\t" in line for line in lines[:3] if line.strip()):
        return csv_rows(data, config)
    return None


def _closed_up(data: bytes) -> bytes:
    """The same workbook with sheets whose cells lie far apart closed up: a reader makes room for every cell between."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        changed = {}
        for info in old.infolist():
            if _SHEET.fullmatch(info.filename):
                try:
                    part = old.read(info)
                except (zipfile.BadZipFile, OSError, ValueError):
                    continue
                if (smaller := _closed_up_sheet(part)) is not None:
                    changed[info.filename] = smaller
        if not changed:
            return data
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                new.writestr(info.filename, changed.get(info.filename) or old.read(info))
    return out.getvalue()


def _closed_up_sheet(part: bytes) -> bytes | None:
    """None for a sheet that is small enough as it is. One empty row or column stays of each gap."""
    found = _CELL.findall(part)
    columns = {_column(letters) for _, letters, _ in found}
    rows = {int(digits) for *_, digits in found}
    if not found or (max(columns) - min(columns) + 1) * (max(rows) - min(rows) + 1) <= MOST_CELLS:
        return None
    columns_at, rows_at = _closed(columns), _closed(rows)
    if max(columns_at.values()) * max(rows_at.values()) > 8 * MOST_CELLS:
        raise Refused(f"sheet over {8 * MOST_CELLS} cells")
    part = _PLACES.sub(b"", part)
    order = sorted(rows)
    part = _ROW.sub(
        lambda m: b'%s%d"' % (m[1], rows_at[order[min(bisect_left(order, int(m[2])), len(order) - 1)]]), part
    )
    return _CELL.sub(lambda m: b'%s%s%d"' % (m[1], _letters(columns_at[_column(m[2])]), rows_at[int(m[3])]), part)


def _closed(places: set[int]) -> dict[int, int]:
    """New places from 1 on, in the old order."""
    found: dict[int, int] = {}
    last = at = 0
    for place in sorted(places):
        at += 1 if place == last + 1 or not found else 2
        found[place] = at
        last = place
    return found


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + letter - 64
    return number


def _letters(column: int) -> bytes:
    letters = b""
    while column:
        column, rest = divmod(column - 1, 26)
        letters = bytes([65 + rest]) + letters
    return letters


def _fill_down(rows: list[list[str]], sheet: Any) -> None:
    """Put the value of a cell that spans rows into each of these, as each is a record of its own."""
    top, left = sheet.start or (0, 0)
    for (first, column), (last, _) in sheet.merged_cell_ranges or ():
        if not 0 <= first - top < len(rows) or not 0 <= column - left < len(rows[first - top]):
            continue
        value = rows[first - top][column - left]
        for row in rows[first - top + 1 : last - top + 1]:
            row[column - left] = row[column - left] or value


def _notes(package: Package | None, name: str) -> Iterator[tuple[Cell | None, str]]:
    """Notes and comments on the cells of a sheet of an xlsx, with the cell."""
    part = part_of(package, name) if package else ""
    if package is None or not part:
        return
    for relation in package.related(part):
        if relation.kind in ("comments", "threadedComment") and (notes := package.xml(relation.part)) is not None:
            yield from _comments(notes)


def _comments(root: Any) -> Iterator[tuple[Cell | None, str]]:
    authors = ["".join(e.itertext()) for e in root.iter() if local(e) == "author"]
    for note in root.iter():
        if local(note) not in ("comment", "threadedComment"):
            continue
        text = "".join(e.text or "" for e in note.iter() if local(e) in ("t", "text")).strip()
        number = attribute(note, "authorId") or ""
        author = authors[int(number)] if number.isdecimal() and int(number) < len(authors) else ""
        text = text.removeprefix(f"{author}:").strip()
        if text and not text.startswith("[Threaded comment]"):  # which says that there is a newer one
            by = f" by {author}" if author and not author.startswith("tc=") else ""
            place = attribute(note, "ref") or ""
            yield place_of(place), f"Comment on {place}{by}: {text}"


def _uncomputed(package: Package | None) -> int:
    """Formulas of an xlsx without a value: programs other than spreadsheets write such."""
    names = package.names if package else ()
    return sum(len(_UNCOMPUTED.findall(package.read(name))) for name in names if package and _SHEET.fullmatch(name))


def _shown(cell: Any) -> str:
    """A cell of a sheet: whole numbers without a point, days without midnight."""
    match cell:
        case bool():
            return str(cell).lower()
        case float() if cell.is_integer() and abs(cell) < 1e15:
            return str(int(cell))
        case datetime.datetime() if cell.time() == datetime.time():
            return cell.date().isoformat()
        case datetime.datetime():
            return cell.isoformat(" ")
        case datetime.timedelta():
            seconds = round(cell.total_seconds())
            return f"{'-' * (seconds < 0)}{abs(seconds) // 3600}:{abs(seconds) // 60 % 60:02}:{abs(seconds) % 60:02}"
        case datetime.date() | datetime.time():
            return cell.isoformat()
    return str(cell)
