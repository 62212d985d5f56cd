"""Word documents (docx, docm, dotx, strict or not) to text, with notes, comments, headers and list numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.drawings import chart, formula, paragraphs
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.formats import PARSERS, format_of
from sac_rag.text.markup import Package, attribute, child, local, whole
from sac_rag.text.rows import MOST_SPAN, row_lines
from sac_rag.text.symbols import RAISED, shown, sign, with_exponents
from sac_rag.text.word_numbers import OFF, Numbers

_AROUND = frozenset({"sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"})
"""Elements that stand around others and say nothing themselves."""
_SILENT = frozenset({"pPr", "rPr", "Fallback", "instrText"})  # a fallback repeats its choice
_HEX = re.compile("[0-9A-Fa-f]{1,6}")
_WHITE = re.compile("(?:[Ff][0-9A-Fa-f]){3}")
_MOST_STYLES = 20
"""Styles in a row that one is based on."""


def docx(data: bytes, config: ReadConfig) -> Parsed:
    """Paragraphs and tables in order; deleted and hidden text, and white on white, is left out and told. Headings: by
    style or outline level.

    Footnotes, endnotes and comments stand behind the paragraph that refers to them, headers in front of all, footers
    behind.
    """
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("encrypted or older word file")
    document = _Document(Package(data, "docx"), config)
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
    out.notices += document.notices
    out.hidden += document.hidden
    return out.finish(title=short_title(clean(document.package.title())))


@dataclass
class _Block:
    """A paragraph or a row of a table. `level` counts from 1; 0 for what is no heading."""

    text: str
    level: int = 0
    is_row: bool = False
    notes: list[str] = field(default_factory=list)


class _Document:
    def __init__(self, package: Package, config: ReadConfig) -> None:
        self.package, self.config = package, config
        self.notices: list[str] = []
        self.hidden: Counter[str] = Counter()
        """Texts that are not seen, by kind."""
        self.is_white = True
        """Whether what lies behind the text at hand is known to be white: not in cells and boxes, which have styles of
        their own, and not where anything is shaded."""
        self.around_runs: list[Any | None] = []
        """Properties that the styles of the paragraph at hand give its runs."""
        self.fields: list[bool] = []
        """Fields that are open in a paragraph; whether each has come to its result."""
        main = next((r.part for r in package.related("") if r.kind == "officeDocument"), "word/document.xml")
        root = package.xml(main)
        if root is None or child(root, "body") is None:
            raise Refused("damaged docx")
        self.body = child(root, "body")
        self.parts: dict[str, list[str]] = defaultdict(list)
        self.targets: dict[str, str] = {}
        for relation in package.related(main):
            self.parts[relation.kind].append(relation.part)
            self.targets[relation.id] = relation.part
        roots = [root, *(self.package.xml(part) for part in self.parts["header"])]
        self.has_background = child(root, "background") is not None or any(map(_has_backdrop, roots))
        self.styles = {attribute(s, "styleId") or "": s for s in self._elements("styles", "style")}
        self.numbers = Numbers(self._elements("numbering", "abstractNum"), self._elements("numbering", "num"))
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
                with self._over(None):
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
                    yield from self._table(element)
                case "sdt" if _is_prompt(element):
                    continue
                case "altChunk":
                    yield _Block(self._chunk(attribute(element, "id")))
                case name if name in _AROUND:
                    yield from self.blocks(element)

    def _table(self, table: Any) -> Iterator[_Block]:
        """Its rows, each cell under its column; rows whose deletion is tracked are left out."""
        rows, notes = [], []
        for row in _parts(table, "tr"):
            properties = child(row, "trPr")
            if child(properties, "del") is not None:
                self.hidden["deletions"] += 1
                continue
            cells, found = [""] * min(whole(attribute(child(properties, "gridBefore"), "val"), 0), MOST_SPAN), []
            for cell in _parts(row, "tc"):
                with self._over(None):
                    blocks = list(self.blocks(cell))
                cells.append(" ".join(block.text for block in blocks).strip())
                span = whole(attribute(child(cell, "tcPr", "gridSpan"), "val"), 1)
                cells += [""] * (min(span, MOST_SPAN) - 1)
                found += [note for block in blocks for note in block.notes]
            rows.append(cells)
            notes.append(found)
        for line, found in zip(row_lines(rows), notes, strict=True):
            yield _Block(line, is_row=True, notes=found)

    def _chunk(self, number: str | None) -> str:
        """The text of a document of another format that is put in whole."""
        part = self.targets.get(number or "", "")
        form = format_of(PurePath(part))
        data = self.package.read(part)
        if form is None or not data:
            self.notices.append("a document that is put in could not be read")
            return ""
        if form.parser is None:
            return decode(data, tell=self.notices.append)
        parsed: Parsed = PARSERS.load(form.parser)(data, self.config)
        self.notices += parsed.meta.get("notices", [])
        return parsed.text

    def _paragraph(self, element: Any) -> _Block:
        block = _Block("")
        self.fields = []
        properties = child(element, "pPr")
        styles = list(self._styles(attribute(child(properties, "pStyle"), "val")))
        self.around_runs = [child(style, "rPr") for style in styles]
        with self._over([properties, *(child(style, "pPr") for style in styles), *self.around_runs]):
            text = with_exponents("".join(self._text(element, block.notes)))
        if any(map(_is_hidden, self.around_runs)):
            self.hidden["texts"] += bool(text.strip())
            return _Block("", notes=block.notes)
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

    def _text(self, parent: Any, notes: list[str], font: str = "") -> Iterator[str]:
        for element in parent:
            match local(element):
                case "t":
                    if all(self.fields):
                        yield shown(element.text or "", font)
                case "tab":
                    yield "\t"
                case "br" | "cr":
                    yield "\n"
                case "noBreakHyphen":
                    yield "-"
                case "sym":
                    code = attribute(element, "char") or ""
                    yield sign(attribute(element, "font") or "", int(code, 16)) if _HEX.fullmatch(code) else ""
                case "fldChar":
                    yield self._field(element)
                case "r":
                    yield from self._run(element, notes)
                case "oMath":
                    yield formula(element)
                case "txbxContent":
                    kept = self.fields, self.around_runs
                    self.fields = []
                    with self._over(None):
                        yield "\n".join(["", *(block.text for block in self.blocks(element)), ""])
                    self.fields, self.around_runs = kept
                case "sdt" if _is_prompt(element):
                    continue
                case "ruby":
                    base, above = (
                        "".join(
                            text for part in element if local(part) == name for text in self._text(part, notes, font)
                        )
                        for name in ("rubyBase", "rt")
                    )
                    yield f"{base}({above})"
                case "chart" | "relIds" as name:
                    notes.append(self._drawing(name, element))
                case "footnoteReference" | "endnoteReference" | "commentReference" as name:
                    yield self._note(name.removesuffix("Reference"), attribute(element, "id"), notes)
                case "del" | "moveFrom" as name:
                    self.hidden["deletions"] += name == "del" and next(element.iter("{*}delText"), None) is not None
                case name if name not in _SILENT:
                    yield from self._text(element, notes, font)

    @contextmanager
    def _over(self, properties: list[Any | None] | None) -> Iterator[None]:
        """Read what stands over a ground that these properties say; None for one that is not known."""
        before = self.is_white
        self.is_white &= properties is not None and not any(map(_is_shaded, properties)) and not self.has_background
        yield
        self.is_white = before

    def _run(self, run: Any, notes: list[str]) -> Iterator[str]:
        properties = child(run, "rPr")
        styles = [child(style, "rPr") for style in self._styles(attribute(child(properties, "rStyle"), "val"))]
        looks = [properties, *styles, *self.around_runs]
        is_white = self.is_white and not any(map(_is_shaded, looks)) and _is_in_white(looks)
        if _is_hidden(properties, *styles) or is_white:
            self.hidden["texts"] += any((t.text or "").strip() for t in run.iter("{*}t"))
            return
        if attribute(child(properties, "vertAlign"), "val") == "superscript":
            yield RAISED
        yield from self._text(run, notes, attribute(child(properties, "rFonts"), "ascii") or "")

    def _field(self, mark: Any) -> str:
        """What a field shows besides its result: boxes that are checked, and choices; its code is passed over."""
        match attribute(mark, "fldCharType"):
            case "begin":
                self.fields.append(False)
            case "separate" if self.fields:
                self.fields[-1] = True
            case "end" if self.fields:
                self.fields.pop()
        data = child(mark, "ffData")
        if (box := child(data, "checkBox")) is not None:
            states = (child(box, "checked"), child(box, "default"))
            state = next((state for state in states if state is not None), None)
            return "[x]" if state is not None and attribute(state, "val") not in OFF else "[ ]"
        if (choices := child(data, "ddList")) is not None:
            entries = [attribute(entry, "val") or "" for entry in choices if local(entry) == "listEntry"]
            chosen = whole(attribute(child(choices, "result"), "val"), 0)
            return entries[chosen] if chosen < len(entries) else ""
        return ""

    def _drawing(self, name: str, element: Any) -> str:
        """The text of a chart or a diagram, which lies in a part of its own."""
        root = self.package.xml(self.targets.get(attribute(element, "id" if name == "chart" else "dm") or "", ""))
        if root is None:
            return ""
        return chart(root) if name == "chart" else "\n".join(paragraphs(root))

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
            return whole(outline, 9) + 1 if whole(outline, 9) < 9 else 0
    return 0


def _is_prompt(control: Any) -> bool:
    """Whether nothing was entered into a content control yet: "Click here to enter text"."""
    return child(control, "sdtPr", "showingPlcHdr") is not None


def _is_hidden(*properties: Any | None) -> bool:
    """Whether the first of these properties of a run that says something of it hides its text."""
    found = (vanish for one in properties if (vanish := child(one, "vanish")) is not None)
    return any(attribute(vanish, "val") not in OFF for vanish in [next(found, None)] if vanish is not None)


def _is_in_white(properties: list[Any | None]) -> bool:
    """Whether the first of these properties of a run that says a colour says white, or nearly."""
    colours = (attribute(child(one, "color"), "val") for one in properties)
    return bool(_WHITE.fullmatch(next(filter(None, colours), "")))


def _has_backdrop(root: Any | None) -> bool:
    """Whether anything is drawn behind the text."""
    found = root.iter("{*}anchor", "{*}shape", "{*}rect") if root is not None else ()
    return any(e.get("behindDoc") in ("1", "true") or "z-index:-" in (e.get("style") or "") for e in found)


def _is_shaded(properties: Any | None) -> bool:
    """Whether properties colour the ground of a text in any way."""
    return any(child(properties, name) is not None for name in ("shd", "highlight"))


def _parts(parent: Any, wanted: str) -> Iterator[Any]:
    """Rows of a table or cells of a row, those within content controls and changes included."""
    for element in parent:
        name = local(element)
        if name == wanted:
            yield element
        elif name in _AROUND:
            yield from _parts(element, wanted)
