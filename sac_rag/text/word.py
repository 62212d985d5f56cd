"""Word documents (docx, docm, dotx, strict or not) to text, with notes, comments, headers and list numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import Package, attribute, child, local
from sac_rag.text.numerals import numeral

_AROUND = frozenset({"sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"})
"""Elements that stand around others and say nothing themselves."""
_SILENT = frozenset({"pPr", "del", "moveFrom", "Fallback", "instrText"})  # a fallback repeats its choice
_OFF = ("0", "false", "off")
"""Values of a property that is switched off."""
_MOST_STYLES = 20
"""Styles in a row that one is based on."""


def docx(data: bytes, config: ReadConfig) -> Parsed:
    """Paragraphs and tables in order, deleted and hidden text left out. Headings: by style or outline level.

    Footnotes, endnotes and comments stand behind the paragraph that refers to them, headers in front of all, footers
    behind.
    """
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("encrypted or older word file")
    document = _Document(Package(data, "docx"))
    out = Extract(config.text_chars)
    for text in document.around("header"):
        out.add(text, blank=True)
    for block in document.blocks(document.body):
        if block.level:
            out.heading(block.level, block.text)
        elif block.is_row:
            out.add(block.text)
        else:
            out.add(block.text, blank=True)
            out.gap()
        for note in block.notes:
            out.add(note, blank=True)
    for text in document.around("footer"):
        out.add(text, blank=True)
    return out.finish(title=short_title(clean(document.package.title())))


@dataclass
class _Block:
    """A paragraph or a row of a table. `level` counts from 1; 0 for what is no heading."""

    text: str
    level: int = 0
    is_row: bool = False
    notes: list[str] = field(default_factory=list)


class _Document:
    def __init__(self, package: Package) -> None:
        self.package = package
        main = next((r.part for r in package.related("") if r.kind == "officeDocument"), "word/document.xml")
        root = package.xml(main)
        if root is None or child(root, "body") is None:
            raise Refused("damaged docx")
        self.body = child(root, "body")
        self.parts: dict[str, list[str]] = defaultdict(list)
        for relation in package.related(main):
            self.parts[relation.kind].append(relation.part)
        self.styles = {attribute(s, "styleId") or "": s for s in self._elements("styles", "style")}
        self.numbers = _Numbers(self._elements("numbering", "abstractNum"), self._elements("numbering", "num"))
        self.notes = {
            (kind, attribute(note, "id")): note
            for kind in ("footnote", "endnote", "comment")
            for note in self._elements(f"{kind}s", kind)
        }
        self.seen = 0
        """Foot- and endnotes that were referred to so far."""

    def around(self, kind: str) -> list[str]:
        """Texts of headers or footers, each once, without mere numbers."""
        texts = []
        for part in self.parts[kind]:
            root = self.package.xml(part)
            if root is not None:
                text = "\n".join(filter(None, (block.text.strip() for block in self.blocks(root))))
                texts.append(text if re.search(r"[^\W\d_]", text) else "")
        return list(filter(None, dict.fromkeys(texts)))

    def blocks(self, parent: Any) -> Iterator[_Block]:
        """Depth is bounded by lxml's own limit."""
        for element in parent:
            match local(element):
                case "p":
                    yield self._paragraph(element)
                case "tbl":
                    for row in _parts(element, "tr"):
                        yield self._row(row)
                case name if name in _AROUND:
                    yield from self.blocks(element)

    def _row(self, row: Any) -> _Block:
        cells, notes = [], []
        for cell in _parts(row, "tc"):
            found = list(self.blocks(cell))
            cells.append(" ".join(block.text for block in found).strip())
            notes += [note for block in found for note in block.notes]
        return _Block(" | ".join(filter(None, cells)), is_row=True, notes=notes)

    def _paragraph(self, element: Any) -> _Block:
        block = _Block("")
        text = "".join(self._text(element, block.notes))
        properties = child(element, "pPr")
        styles = list(self._styles(attribute(child(properties, "pStyle"), "val")))
        places = [properties, *(child(style, "pPr") for style in styles)]
        block.level = _level(places, styles)
        numbered = next((n for place in places if (n := child(place, "numPr")) is not None), None)
        label = self.numbers.label(numbered) if numbered is not None and text.strip() else ""
        block.text = f"{label} {text}" if label and not (block.level and label == "-") else text
        return block

    def _styles(self, name: str | None) -> Iterator[Any]:
        """A style and those it is based on."""
        for _ in range(_MOST_STYLES):
            style = self.styles.get(name or "")
            if style is None:
                return
            yield style
            name = attribute(child(style, "basedOn"), "val")

    def _text(self, parent: Any, notes: list[str]) -> Iterator[str]:
        for element in parent:
            match local(element):
                case "t":
                    yield element.text or ""
                case "tab":
                    yield "\t"
                case "br" | "cr":
                    yield "\n"
                case "noBreakHyphen":
                    yield "-"
                case "rPr":
                    if (vanish := child(element, "vanish")) is not None and attribute(vanish, "val") not in _OFF:
                        return
                case "p":  # in a text box
                    yield "\n"
                    yield from self._text(element, notes)
                case "footnoteReference" | "endnoteReference" | "commentReference" as name:
                    yield self._note(name.removesuffix("Reference"), attribute(element, "id"), notes)
                case name if name not in _SILENT:
                    yield from self._text(element, notes)

    def _note(self, kind: str, number: str | None, notes: list[str]) -> str:
        """The mark in the text; the note itself goes to `notes`."""
        note = self.notes.pop((kind, number), None)
        text = " ".join(block.text.strip() for block in self.blocks(note)) if note is not None else ""
        if not text.strip():
            return ""
        if kind == "comment":
            author = attribute(note, "author")
            notes.append(f"Comment by {author}: {text}" if author else f"Comment: {text}")
            return ""
        self.seen += 1
        notes.append(f"[{self.seen}] {text.strip()}")
        return f"[{self.seen}]"

    def _elements(self, part: str, name: str) -> list[Any]:
        roots = (self.package.xml(p) for p in self.parts[part])
        return [element for root in roots if root is not None for element in root if local(element) == name]


class _Numbers:
    """Numbers of list paragraphs, counted in the order of the text."""

    def __init__(self, abstract: list[Any], used: list[Any]) -> None:
        levels = {
            attribute(a, "abstractNumId"): {attribute(v, "ilvl"): v for v in a if local(v) == "lvl"} for a in abstract
        }
        self.lists = {attribute(n, "numId"): (attribute(child(n, "abstractNumId"), "val"), n) for n in used}
        self.levels = levels
        self.counts: dict[str | None, Counter[int]] = defaultdict(Counter)
        self.begun: set[tuple[str | None, int]] = set()

    def label(self, properties: Any) -> str:
        """What Word writes before a paragraph with these numbering properties; "-" for bullets, "" for nothing."""
        number = attribute(child(properties, "numId"), "val")
        depth = _whole(attribute(child(properties, "ilvl"), "val"), 0)
        key, used = self.lists.get(number, (None, None))
        levels = self.levels.get(key, {})
        level = levels.get(str(depth))
        if level is None:
            return ""
        if _format(level) in ("bullet", "none"):
            return "-" if _format(level) == "bullet" else ""
        counts = self.counts[key]
        for above in range(depth):
            counts[above] = counts[above] or self._start(levels.get(str(above)), None, above)
        start = self._start(level, used, depth)
        if (number, depth) not in self.begun and start != self._start(level, None, depth):
            counts[depth] = 0  # a list that begins anew
        self.begun.add((number, depth))
        counts[depth] = counts[depth] + 1 if counts[depth] else start
        for deeper in [d for d in counts if d > depth]:
            del counts[deeper]

        def shown(match: re.Match[str]) -> str:
            at = int(match[1]) - 1
            return numeral(counts[at], _format(levels.get(str(at))))

        pattern = attribute(child(level, "lvlText"), "val") or ""
        return re.sub(r"%([1-9])", shown, pattern[:50]).strip()

    def _start(self, level: Any | None, used: Any | None, depth: int) -> int:
        """The first number of a level; that of the list itself, if it says so."""
        for override in used if used is not None else ():
            if local(override) == "lvlOverride" and attribute(override, "ilvl") == str(depth):
                return _whole(attribute(child(override, "startOverride"), "val"), 1)
        return _whole(attribute(child(level, "start"), "val"), 1)


def _level(places: list[Any | None], styles: list[Any]) -> int:
    """Heading level of a paragraph by the names of its styles, else by its outline level; 0 for none."""
    for style in styles:
        name = (attribute(child(style, "name"), "val") or "").lower()
        if name == "title":
            return 1
        if match := re.fullmatch(r"heading ([1-9])", name):
            return int(match[1])
    for place in places:
        if (outline := attribute(child(place, "outlineLvl"), "val")) is not None:
            return _whole(outline, 9) + 1 if _whole(outline, 9) < 9 else 0
    return 0


def _parts(parent: Any, wanted: str) -> Iterator[Any]:
    """Rows of a table or cells of a row, those within content controls and changes included."""
    for element in parent:
        name = local(element)
        if name == wanted:
            yield element
        elif name in _AROUND:
            yield from _parts(element, wanted)


def _format(level: Any | None) -> str:
    return attribute(child(level, "numFmt"), "val") or "decimal"


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,6}", text) else otherwise
