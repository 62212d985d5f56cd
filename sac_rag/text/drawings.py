"""Formulas, charts and diagrams of office documents as text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sac_rag.text.markup import attribute, child, local
from sac_rag.text.rows import row_lines

_ESCAPED = re.compile(r"_x(00[01][0-9A-Fa-f])_")


def formula(element: Any) -> str:
    """A formula (OMML) on one line: a/b, x^2, x_i, √(x); other structures as their parts one after the other."""
    match local(element):
        case "t":
            return element.text or ""
        case "f":
            return f"{_grouped(child(element, 'num'))}/{_grouped(child(element, 'den'))}"
        case "sSup" | "sSub" | "sSubSup" as name:
            below = f"_{_grouped(child(element, 'sub'))}" if "Sub" in name else ""
            above = f"^{_grouped(child(element, 'sup'))}" if "Sup" in name else ""
            return f"{_inner(child(element, 'e'))}{below}{above}"
        case "rad":
            return f"{_inner(child(element, 'deg'))}\u221a({_inner(child(element, 'e'))})"
        case "d":
            properties = child(element, "dPr")
            opening = attribute(child(properties, "begChr"), "val")
            closing = attribute(child(properties, "endChr"), "val")
            inner = ", ".join(_inner(part) for part in element if local(part) == "e")
            return f"{'(' if opening is None else opening}{inner}{')' if closing is None else closing}"
        case "nary":
            sign = attribute(child(element, "naryPr", "chr"), "val") or "\u222b"
            sub, sup = _grouped(child(element, "sub")), _grouped(child(element, "sup"))
            return f"{sign}{f'_{sub}' if sub else ''}{f'^{sup}' if sup else ''} {_inner(child(element, 'e'))}"
        case "mr":
            return ", ".join(_inner(part) for part in element if local(part) == "e") + "; "
    return _inner(element)


def _inner(element: Any | None) -> str:
    return "".join(map(formula, element)) if element is not None else ""


def _grouped(element: Any | None) -> str:
    text = _inner(element).strip()
    return text if len(text) < 2 or text.isalnum() else f"({text})"


def chart(root: Any) -> str:
    """Title of a chart, and its values as a table: categories down, series across."""
    title = next((e for e in root.iter() if local(e) == "title"), None)
    series = [e for e in root.iter() if local(e) == "ser"]
    names = ["".join(_texts(child(one, "tx"))) for one in series]
    columns = [
        _points(next((c for c in (child(one, "val"), child(one, "yVal")) if c is not None), None)) for one in series
    ]
    labels: dict[str, str] = {}
    for one in series:
        for kind in ("cat", "xVal"):
            labels = {**_points(child(one, kind)), **labels}
    places = sorted({place for column in columns for place in column}, key=lambda place: int(place))
    rows = [["", *names], *([labels.get(at, ""), *(column.get(at, "") for column in columns)] for at in places)]
    return "\n".join(filter(None, ["".join(_texts(title)), *row_lines(rows)]))


def _points(element: Any | None) -> dict[str, str]:
    """Values that a chart remembers, by their places."""
    if element is None:
        return {}
    points = [point for point in element.iter() if local(point) == "pt"]
    return {attribute(p, "idx") or "": "".join(_texts(p)) for p in points if (attribute(p, "idx") or "").isdecimal()}


def _texts(element: Any | None) -> Iterator[str]:
    for inner in element.iter() if element is not None else ():
        if local(inner) in ("t", "v"):
            yield inner.text or ""


def paragraphs(root: Any) -> Iterator[str]:
    """Paragraphs of DrawingML that say something: an element itself, or those below it."""
    for paragraph in root.iter():
        if local(paragraph) == "p" and (text := "".join(_pieces(paragraph)).strip()):
            yield text


def _pieces(paragraph: Any) -> Iterator[str]:
    """Texts of its runs; a raised number behind a number is an exponent, or a mark."""
    last = ""
    for run in paragraph:
        text = _ESCAPED.sub(_unescaped, "".join(map(_run, run.iter())))
        height = (attribute(child(run, "rPr"), "baseline") or "").strip("%")
        if height.isdecimal() and height != "0" and last[-1:].isdigit() and text[:1].isdigit():
            yield "^"
        yield text
        last = text or last


def _unescaped(match: re.Match[str]) -> str:
    """Control characters, which XML has no place for: line ends by hand."""
    return "\n" if int(match[1], 16) in (0x0A, 0x0B, 0x0D) else ""


def _run(element: Any) -> str:
    match local(element):
        case "t":
            return element.text or ""
        case "br":
            return "\n"
    return ""
