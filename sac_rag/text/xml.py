"""XML to text: elements without others are "name: value" lines, texts with markup within them are paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.entities import html5
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import local, xml_root
from sac_rag.text.parts import Parts
from sac_rag.text.rows import row_lines

_TITLES = frozenset("title head heading h1 h2 h3 subject headline".split())
_PLAIN = frozenset(
    "p para simpara text body content description summary value item entry line l s seg ab li td".split()
)
"""Elements whose names say nothing about what stands in them."""
MOST_DEPTH = 200
_DECLARATION = re.compile(r"\A\s*(?:<\?xml\b[^>]*\?>)?\s*")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_ENTITY = re.compile(r"&(\w{2,32});")


def xml(data: bytes, config: ReadConfig) -> Parsed:
    """Texts and attributes in the declared encoding; titles are headings of what stands beside them.

    A file that is not well formed is read as it is.
    """
    out = Extract(config.text_chars)
    try:
        root = xml_root(data, "xml", entities=True)
    except Refused as refused:
        if str(refused) != "damaged xml":
            raise
        text = decode(data, tell=out.notices.append, encoding=config.encoding)
        try:
            root = xml_root(_mended(text).encode(), "xml", entities=True)
        except Refused:
            out.add(text)
            out.notices.append("not well-formed xml, read as text")
            return out.finish()
    parts = Parts(out, "elements")
    _write(out, root, 1, parts)
    parts.tell()
    return out.finish()


def _mended(text: str) -> str:
    """The same without what most often keeps a file from being well-formed, and says nothing: a declaration behind
    white space or of another encoding, control characters, names of HTML for characters."""
    return _ENTITY.sub(_character, _CONTROLS.sub("", _DECLARATION.sub("", text.lstrip("\ufeff"))))


def _character(match: re.Match[str]) -> str:
    known = html5.get(f"{match[1]};")
    return match[0] if known is None or match[1] in ("lt", "gt", "amp", "quot", "apos") else known


def _write(out: Extract, element: Any, depth: int, parts: Parts) -> None:
    name = local(element)
    if not name:  # comments and instructions
        return
    inner = [child for child in element if local(child)]
    own = "".join([element.text or "", *(child.tail or "" for child in element)]).strip()
    attributes = [(key.rpartition("}")[2], value.strip()) for key, value in element.attrib.items()]

    if name == "table" and (rows := list(_rows(element))):
        out.gap()
        for row in row_lines(rows):
            with parts.one():
                out.add(row)
        out.gap()
        return
    if own or not inner:
        with parts.one():
            _write_text(out, element, name, depth, has_markup=bool(inner))
            _write_attributes(out, name, attributes)
        return
    out.gap()
    if attributes:
        with parts.one():
            _write_attributes(out, name, attributes)
    for child in inner:
        _write(out, child, min(depth + 1, MOST_DEPTH), parts)
    out.gap()


def _write_text(out: Extract, element: Any, name: str, depth: int, *, has_markup: bool) -> None:
    text = " ".join("".join(element.itertext(tag="*")).split())
    if name.lower() in _TITLES and short_title(text) == text:
        out.heading(min(depth, 6), text)
    elif text:
        out.add(text if name.lower() in _PLAIN else f"{name}: {text}", blank=has_markup)


def _rows(table: Any) -> Iterator[list[str]]:
    """Cells of the rows of a table, where it is written as in HTML or DocBook."""
    for row in table.iter():
        if local(row) in ("tr", "row"):
            yield ["".join(cell.itertext(tag="*")) for cell in row if local(cell) in ("td", "th", "entry")]


def _write_attributes(out: Extract, name: str, attributes: list[tuple[str, str]]) -> None:
    out.add("\n".join(f"{name}.{key}: {value}" for key, value in attributes if value))
