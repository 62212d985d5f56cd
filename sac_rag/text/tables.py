"""Records to text: csv, tsv, json, jsonl. One record is one paragraph of "name: value" lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from sac_rag.text.cleaning import Refused, decode
from sac_rag.text.extract import Extract, Parsed

_DELIMITERS = ",;\t|"
_TEXT_FIELDS = ("text", "content")


def csv_rows(data: bytes, max_chars: int) -> Parsed:
    """Rows as "column: value" lines. The first row names the columns; the delimiter is the one that splits it most."""
    text = decode(data)
    try:
        widths = {d: len(next(_rows(text, d), [])) for d in _DELIMITERS}
    except csv.Error:
        raise Refused("damaged csv") from None
    return _table(text, max(_DELIMITERS, key=lambda d: widths[d]), max_chars)


def tsv_rows(data: bytes, max_chars: int) -> Parsed:
    """Like csv_rows, with tabs."""
    return _table(decode(data), "\t", max_chars)


def json_values(data: bytes, max_chars: int) -> Parsed:
    """A list as records, anything else as one record; see `_record`."""
    out = Extract(max_chars)
    value = _load(decode(data), "not valid json")
    for item in value if isinstance(value, list) else [value]:
        _record(out, item)
    return out.finish()


def json_lines(data: bytes, max_chars: int) -> Parsed:
    """One record a line; a line that is not JSON refuses the file and is named."""
    out = Extract(max_chars)
    # not splitlines: JSON strings may hold U+2028
    for number, line in enumerate(decode(data).split("\n"), 1):
        if line.strip():
            _record(out, _load(line, f"line {number} is not valid json"))
    return out.finish()


def _rows(text: str, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(max(len(text), 1))
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _table(text: str, delimiter: str, max_chars: int) -> Parsed:
    out = Extract(max_chars)
    try:
        rows = _rows(text, delimiter)
        names = next(rows, [])
        alone = True
        for row in rows:
            alone = False
            _row(out, names, row)
        if alone:  # a single row names nothing
            _row(out, [], names)
    except csv.Error:
        raise Refused("damaged csv") from None
    return out.finish()


def _row(out: Extract, names: list[str], row: list[str]) -> None:
    out.gap()
    for i, value in enumerate(row):
        if value.strip():
            name = names[i].strip() if i < len(names) else ""
            out.add(f"{name or f'column {i + 1}'}: {value.strip()}")


def _load(text: str, refusal: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Refused(refusal) from None


def _record(out: Extract, value: Any) -> None:
    """A string; an object's "text" or "content"; else "key: value" lines with dotted keys."""
    out.gap()
    if isinstance(value, dict):
        for name in _TEXT_FIELDS:
            if isinstance(value.get(name), str) and value[name].strip():
                out.add(value[name])
                return
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
