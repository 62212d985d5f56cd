"""How a workbook shows its cells: which rows and columns are hidden, and in which format numbers stand."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sac_rag.text.markup import Package, attribute, child, local
from sac_rag.text.number_formats import BUILT_IN, as_shown
from sac_rag.text.rows import MOST_SPAN

_PLACE = re.compile(r"([A-Z]{1,3})(\d{1,7})")
_HIDDEN = ("1", "true")
_NUMERIC = ("float", "percentage", "currency")

Cell = tuple[int, int]
"""(row, column), from 0."""


@dataclass
class Look:
    """Of one sheet; spans are (first, last), from 0."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    """Hidden."""
    columns: list[tuple[int, int]] = field(default_factory=list)
    """Hidden."""
    formats: dict[Cell, str] = field(default_factory=dict)
    """Formats of numbers."""
    texts: dict[Cell, str] = field(default_factory=dict)
    """Numbers as the file says that they are shown."""

    def text(self, cell: Cell, value: Any) -> str | None:
        """A value as it is shown; None for one without a format, or of a kind that is written in a way of our own."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return self.texts.get(cell) or (as_shown(value, code) if (code := self.formats.get(cell)) else None)

    def is_hidden(self, cell: Cell) -> bool:
        return _within(cell[0], self.rows) or _within(cell[1], self.columns)


def looks_of(package: Package | None) -> Callable[[str], Look]:
    """The look of a sheet by its name. Of binary workbooks nothing is known."""
    if package is None:
        return lambda name: Look()
    if (content := package.xml("content.xml")) is not None:
        tables = {attribute(e, "name") or "": e for e in content.iter() if local(e) == "table"}
        hidden = {
            attribute(e, "name") or ""
            for e in content.iter()
            if local(e) == "style" and attribute(child(e, "table-column-properties"), "display") == "none"
        }
        return lambda name: _open_look(tables[name], hidden) if name in tables else Look()
    codes = _codes(package)
    return lambda name: _office_look(package.read(part_of(package, name)), codes)


def part_of(package: Package, sheet: str) -> str:
    """The part of an xlsx that holds a sheet; empty if there is none."""
    root = package.xml("xl/workbook.xml")
    entries = root.iter() if root is not None else ()
    wanted = next((e for e in entries if local(e) == "sheet" and e.get("name") == sheet), None)
    number = next((v for k, v in wanted.attrib.items() if k.endswith("}id")), "") if wanted is not None else ""
    return next((r.part for r in package.related("xl/workbook.xml") if r.id == number), "")


def place_of(reference: str) -> Cell | None:
    """The cell that is called B7."""
    match = _PLACE.fullmatch(reference)
    return (int(match[2]) - 1, _column(match[1])) if match else None


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return number - 1


def _codes(package: Package) -> list[str]:
    """Formats of numbers by the style of a cell."""
    part = next((r.part for r in package.related("xl/workbook.xml") if r.kind == "styles"), "xl/styles.xml")
    if (styles := package.xml(part)) is None:
        return []
    own = {e.get("numFmtId") or "": e.get("formatCode") or "" for e in styles.iter() if local(e) == "numFmt"}
    used = child(styles, "cellXfs")
    numbers = [e.get("numFmtId") or "0" for e in (used if used is not None else ())]
    return [own.get(n) or BUILT_IN.get(int(n) if n.isdecimal() else 0, "") for n in numbers]


def _office_look(part: bytes, codes: list[str]) -> Look:
    """Of a sheet of an xlsx. What stands behind a fault in it is not looked at: its reader refuses the file."""
    from lxml import etree

    look, row = Look(), -1
    if not part:
        return look
    wanted = etree.iterparse(
        io.BytesIO(part), events=("end",), tag=("{*}row", "{*}col"), resolve_entities=False, no_network=True
    )
    try:
        for _, element in wanted:
            hidden = element.get("hidden") in _HIDDEN
            if local(element) == "col":
                if hidden or element.get("width") == "0":
                    look.columns.append((_whole(element.get("min")) - 1, _whole(element.get("max")) - 1))
                continue
            row = _whole(element.get("r")) - 1 if element.get("r") else row + 1
            if hidden or element.get("ht") == "0":
                look.rows.append((row, row))
            for cell, style in _styled(element, row):
                if style < len(codes) and codes[style]:
                    look.formats[cell] = codes[style]
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError:
        return look
    return look


def _styled(row: Any, number: int) -> Iterator[tuple[Cell, int]]:
    column = -1
    for cell in row:
        if local(cell) == "c":
            place = place_of(cell.get("r") or "")
            column = place[1] if place else column + 1
            yield (number, column), _whole(cell.get("s"))


def _open_look(table: Any, hidden_styles: set[str]) -> Look:
    """Of a sheet of OpenDocument, whose cells hold what they show."""
    look = Look()
    row = column = 0
    for element in _below(table, "table-column", "table-row"):
        is_hidden = attribute(element, "visibility") in ("collapse", "filter")
        if local(element) == "table-column":
            count = _whole(attribute(element, "number-columns-repeated"), 1)
            if is_hidden or attribute(element, "style-name") in hidden_styles:
                look.columns.append((column, column + count - 1))
            column += count
            continue
        count = _whole(attribute(element, "number-rows-repeated"), 1)
        if is_hidden:
            look.rows.append((row, row + count - 1))
        for place, text in _open_texts(element):
            look.texts |= {(row + n, place): text for n in range(min(count, MOST_SPAN))}
        row += count
    return look


def _open_texts(row: Any) -> Iterator[tuple[int, str]]:
    """(column, what is shown) of numbers."""
    column = 0
    for cell in row:
        if local(cell) in ("table-cell", "covered-table-cell"):
            count = _whole(attribute(cell, "number-columns-repeated"), 1)
            if attribute(cell, "value-type") in _NUMERIC:
                text = " ".join("".join(p.itertext()) for p in cell if local(p) == "p").strip()
                for n in range(min(count, MOST_SPAN) if text else 0):
                    yield column + n, text
            column += count


def _below(parent: Any, *names: str) -> Iterator[Any]:
    """Elements of a table, those within groups included."""
    for element in parent:
        if local(element) in names:
            yield element
        elif local(element) in ("table-columns", "table-header-columns", "table-column-group", "table-rows",
                                "table-header-rows", "table-row-group"):  # fmt: skip
            yield from _below(element, *names)


def _whole(text: str | None, otherwise: int = 0) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 8 else otherwise


def _within(place: int, spans: Iterable[tuple[int, int]]) -> bool:
    return any(first <= place <= last for first, last in spans)
