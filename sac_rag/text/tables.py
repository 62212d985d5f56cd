"""Records to text: csv, tsv, sheets, json, jsonl. One record is one paragraph of "name: value" lines."""

from __future__ import annotations

import datetime
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, newlines
from sac_rag.text.dialects import Dialect, dialect_of, rows_of
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import check_zip

_TEXT_FIELDS = ("text", "content", "page_content", "body")
_TITLE_FIELDS = ("title", "heading", "headline", "name", "subject")
_LOOKED_AT = 50
"""Rows from which the header is judged."""
_NUMBER = re.compile(r"[-+(]?[\d.,' \u00a0]*\d[)%]?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*")
_YEAR = re.compile(r"(?:19|20)\d\d")

Row = list[str]


def csv_rows(data: bytes, config: ReadConfig) -> Parsed:
    """Rows as "column: value" lines; delimiter, quotes and header are judged from many rows."""
    out = Extract(config.text_chars)
    text = newlines(decode(data, tell=out.notices.append, encoding=config.encoding)).replace("\0", "")
    dialect, text = dialect_of(text)
    _table(out, rows_of(text, dialect))
    return out.finish()


def tsv_rows(data: bytes, config: ReadConfig) -> Parsed:
    """Like csv_rows, with tabs."""
    out = Extract(config.text_chars)
    text = newlines(decode(data, tell=out.notices.append, encoding=config.encoding)).replace("\0", "")
    _table(out, rows_of(text, Dialect("\t")))
    return out.finish()


def sheets(data: bytes, config: ReadConfig) -> Parsed:
    """Every sheet of a workbook (xlsx, xlsm, xlsb, xls, ods) like csv_rows, as values that were last computed."""
    import python_calamine

    if data.startswith(b"PK"):
        check_zip(data, "workbook")
    out = Extract(config.text_chars)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        names = book.sheet_names
        for name in names:
            rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
            if rows and len(names) > 1:
                out.heading(1, name)
            _table(out, ([_shown(cell) for cell in row] for row in rows), level=min(len(names), 2))
    except python_calamine.PasswordError:
        raise Refused("encrypted workbook") from None
    except (python_calamine.CalamineError, OSError):
        raise Refused("damaged workbook") from None
    return out.finish()


def json_values(data: bytes, config: ReadConfig) -> Parsed:
    """A list as records, anything else as one record; see `_record`."""
    out = Extract(config.text_chars)
    text = decode(data, tell=out.notices.append, encoding=config.encoding)
    value = _load(text, "not valid json")
    for item in value if isinstance(value, list) else [value]:
        _record(out, item)
    return out.finish()


def json_lines(data: bytes, config: ReadConfig) -> Parsed:
    """One record a line; a line that is not JSON refuses the file and is named."""
    out = Extract(config.text_chars)
    # not splitlines: JSON strings may hold U+2028
    lines = decode(data, tell=out.notices.append, encoding=config.encoding).split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            _record(out, _load(line, f"line {number} is not valid json"))
    return out.finish()


def _table(out: Extract, rows: Iterable[Row], level: int = 1) -> None:
    """Write rows under the names of their columns; what stands above these is a title, or text of its own."""
    filled = (row for row in ([cell.strip() for cell in row] for row in rows) if any(row))
    head = list(islice(filled, _LOOKED_AT))
    first = _header(head)
    for row in head[:first]:
        words = " ".join(filter(None, row))
        if words.startswith("#") or first > 1:
            out.add(words, blank=True)
        else:
            out.heading(level, words)
    names, start = ([], first) if _is_record(head[first:]) else (head[first], first + 1)
    for row in head[start:]:
        _row(out, names, row)
    for row in filled:
        _row(out, names, row)


def _header(rows: Sequence[Row]) -> int:
    """Index of the row that names the columns: the first as wide as most rows, behind titles, comments and notes."""
    widths = Counter(len(row) for row in rows if sum(map(bool, row)) > 1)
    if not widths:
        return 0
    usual = max(widths, key=lambda width: (widths[width], width))
    if widths[usual] < 2:
        return 0
    for index, row in enumerate(rows):
        cells = sum(map(bool, row))
        # A header may lack the name of the first column, or of the last.
        named = len(row) >= usual - 1 if cells > 1 else not row[0] and len(row) == usual
        if named and not row[0].startswith("#"):
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
        case datetime.date() | datetime.time():
            return cell.isoformat()
    return str(cell)


def _load(text: str, refusal: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Refused(refusal) from None


def _record(out: Extract, value: Any) -> None:
    """A title as heading, the text as it is, then every other field as "key: value" lines with dotted keys."""
    out.gap()
    if isinstance(value, dict):
        body = next((k for k in _TEXT_FIELDS if isinstance(value.get(k), str) and value[k].strip()), None)
        if body:
            title = next((k for k in _TITLE_FIELDS if isinstance(value.get(k), str) and value[k].strip()), None)
            if title and short_title(value[title]) == value[title].strip():
                out.heading(1, value[title])
            elif title:  # too long for a heading
                out.add(f"{title}: {value[title]}")
            out.add(value[body])
            value = {key: item for key, item in value.items() if key not in (title, body)}
    for line in _lines(value, ""):
        out.add(line)


def _lines(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lines(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for i, item in enumerate(value):
            yield from _lines(item, f"{name}.{i}" if name else str(i))
    elif isinstance(value, list):
        yield from _lines(", ".join(map(_scalar, value)), name)
    elif shown := _scalar(value).strip():
        yield f"{name}: {shown}" if name else shown


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)
