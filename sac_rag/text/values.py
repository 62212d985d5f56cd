"""Values of JSON to text: one record is one paragraph of "name: value" lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, newlines
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.parts import Parts

_TEXT_FIELDS = ("text", "content", "page_content", "body")
_TITLE_FIELDS = ("title", "heading", "headline", "name", "subject")
_LOOSE = re.compile(r'"(?:[^"\\]|\\.)*+"|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*\n|/\*.*?\*/)*[}\]])', re.DOTALL)
"""Texts, and what people and programs write besides JSON: comments, and commas before an end."""
_BETWEEN = re.compile(r"[\s\0\x1e\ufeff]*")
"""What may stand between values that follow one another."""
_OPENING = ("{", "[")
_NOT_JSON = "not valid json"
MOST_DIGITS = 4300
"""Digits of a whole number, as in Python's own reader."""


class _Number(str):
    """A number as it is written: 1.10 stays 1.10, and no digit of a long one is lost."""


def json_values(data: bytes, config: ReadConfig) -> Parsed:
    """A list as records, anything else as one record; see `_record`. Several values in a row are records too.

    Comments, and commas before the end of a list, are passed over. Values of one line each, of which one is bad, are
    read as `json_lines` does.
    """
    out = Extract(config.text_chars)
    text = decode(data, tell=out.notices.append, encoding=config.encoding)
    parts = Parts(out, "records")
    try:
        values = list(_values(text, _NOT_JSON))
    except Refused:
        if not _is_lines(text):
            raise
        return json_lines(data, config)
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            with parts.one():
                _record(out, item)
    parts.tell()
    return out.finish()


def json_lines(data: bytes, config: ReadConfig) -> Parsed:
    """One record a line, or over several lines; lines that are not JSON are left out, and a notice names them."""
    out = Extract(config.text_chars)
    text = newlines(decode(data, tell=out.notices.append, encoding=config.encoding))
    # not splitlines: JSON strings may hold U+2028
    lines = [_BETWEEN.sub("", line, count=1) for line in text.split("\n")]
    parts = Parts(out, "lines", _NOT_JSON)
    if next(filter(None, lines), "").rstrip() in _OPENING:
        try:
            values = list(_values(text, _NOT_JSON))
        except Refused:
            parts = Parts(out, "records", _NOT_JSON, at="line")
        else:
            for value in values:
                with parts.one():
                    _records(out, value)
            lines = []
    for number, record in _by_record(lines):
        with parts.one(number):
            for value in _values(record, _NOT_JSON) if "\n" in record else [_decoder.decode(record.rstrip(","))]:
                _records(out, value)
    parts.tell()
    return out.finish()


def _is_lines(text: str) -> bool:
    """Whether the first line that says something is a whole record."""
    try:
        return isinstance(_decoder.decode(_BETWEEN.sub("", text, count=1).partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _by_record(lines: list[str]) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of each record: a line, or, from a line that only opens one, all up to the next
    line that opens one."""
    number = 0
    while number < len(lines):
        first, end = number, number + 1
        if lines[first].rstrip() in _OPENING:
            while end < len(lines) and lines[end][:1] not in ("{", "["):
                end += 1
        number = end
        if record := "\n".join(lines[first:end]).strip("\0 \t\n"):
            yield first + 1, record


def _records(out: Extract, value: Any) -> None:
    for item in value if isinstance(value, list) and any(isinstance(i, dict) for i in value) else [value]:
        _record(out, item)


def _values(text: str, refusal: str) -> Iterator[Any]:
    """The values of a text, one after the other."""
    for source in (text, None):
        if source is None:
            source = _LOOSE.sub(lambda match: match[0] if match[0][0] == '"' else "", text)
        found, at = [], _end(_BETWEEN, source, 0)
        try:
            while at < len(source):
                value, at = _decoder.raw_decode(source, at)
                found.append(value)
                at = _end(_BETWEEN, source, at)
        except ValueError:
            continue
        if found:
            yield from found
            return
    raise Refused(refusal)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; values of one name are a list."""
    found: dict[str, list[Any]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return {key: values[0] if len(values) == 1 else values for key, values in found.items()}


def _whole_number(digits: str) -> _Number:
    if len(digits) > MOST_DIGITS:
        raise ValueError
    return _Number(digits)


_decoder = json.JSONDecoder(
    strict=False, object_pairs_hook=_object, parse_int=_whole_number, parse_float=_Number, parse_constant=_Number
)


def _record(out: Extract, value: Any) -> None:
    """A title as heading, the text as it is, then every other field as "key: value" lines with dotted keys."""
    out.gap()
    if isinstance(value, dict):
        body = next((k for k in _TEXT_FIELDS if _is_text(value.get(k))), None)
        if body:
            title = next((k for k in _TITLE_FIELDS if _is_text(value.get(k))), None)
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, _Number) and bool(value.strip())
