"""EPUB books, and OpenDocument texts and slides. Runs in the parser process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, TooLong, short_title
from sac_rag.text.markup import Package, attribute, beside, child, local, whole
from sac_rag.text.numerals import numeral
from sac_rag.text.rows import MOST_SPAN, row_lines
from sac_rag.text.web import tree_of, write_html

_LIST_STYLES = {"1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}


def epub(data: bytes, config: ReadConfig) -> Parsed:
    """Chapters in reading order, as web pages are read."""
    package = Package(data, "epub")
    container = package.xml("META-INF/container.xml")
    roots = [e for e in container.iter() if local(e) == "rootfile"] if container is not None else []
    path = unquote(roots[0].get("full-path") or "") if roots else ""
    book = package.xml(path)
    if book is None:
        raise Refused("damaged epub")
    folder = path.rpartition("/")[0]
    items = {item.get("id"): item for item in book.iter() if local(item) == "item"}
    spine = [items[e.get("idref")] for e in book.iter() if local(e) == "itemref" and e.get("idref") in items]
    chapters = {beside(folder, (item.get("href") or "").partition("#")[0]): item for item in spine or items.values()}
    if set(chapters) & _encrypted(package, "META-INF/encryption.xml"):
        raise Refused("encrypted epub")
    out = Extract(config.text_chars)
    missing, others = 0, list[str]()
    for name, item in chapters.items():
        if not _is_page(name, item.get("media-type") or ""):
            others.append(name.rpartition("/")[2])
        elif source := package.read(name):
            out.gap()
            try:
                write_html(tree_of(decode(source, tell=out.notices.append, encoding=config.encoding)), out)
            except TooLong:
                raise
            except Refused:
                missing += 1
        else:
            missing += 1
    if missing:
        out.notices.append(f"{missing} of {len(chapters)} chapters are missing or damaged")
    if others and spine:
        out.notices.append(f"{len(others)} of {len(chapters)} chapters hold no text: {', '.join(others)}"[:300])
    title = next((e.text for e in book.iter() if local(e) == "title" and e.text), "")
    return out.finish(title=short_title(clean(title or "")))


def _is_page(name: str, media_type: str) -> bool:
    """Whether a part of a book is a page, by its type or, where that says nothing, its name."""
    if re.search("html|dtbook|x-oeb1", media_type):
        return True
    return media_type in ("", "text/xml", "application/xml") and not re.search(r"(?i)\.(ncx|opf|css)$", name)


def opendocument(data: bytes, config: ReadConfig) -> Parsed:
    """Texts and slides of OpenDocument with lists, tables and notes; headers stand in front, footers behind. Hidden and
    deleted text, and hidden slides, are left out and told."""
    package = Package(data, "opendocument file")
    if "content.xml" in _encrypted(package, "META-INF/manifest.xml"):
        raise Refused("encrypted opendocument file")
    content = package.xml("content.xml")
    body = child(content, "body")
    if body is None:
        raise Refused("damaged opendocument file")
    styles = package.xml("styles.xml")
    around = [e for e in styles.iter() if local(e) in ("header", "footer")] if styles is not None else []
    writer = _Open(Extract(config.text_chars), [root for root in (styles, content) if root is not None])
    for element in around:
        if local(element) == "header":
            writer.write(element)
    for part in body:
        writer.write(part)
    for element in around:
        if local(element) == "footer":
            writer.write(element)
    meta = package.xml("meta.xml")
    title = next((e.text for e in meta.iter() if local(e) == "title"), "") if meta is not None else ""
    return writer.out.finish(title=short_title(clean(title or "")))


class _Open:
    """Writes blocks of OpenDocument; depth is bounded by lxml's own limit."""

    def __init__(self, out: Extract, roots: list[Any]) -> None:
        self.out = out
        self.lists: dict[str, dict[str, Any]] = {}
        """Styles of lists by name, their levels by number."""
        self.hidden: set[str] = set()
        """Names of styles whose text is not seen."""
        for element in (element for root in roots for element in root.iter()):
            name = attribute(element, "name") or ""
            if local(element) == "list-style":
                self.lists[name] = {attribute(level, "level") or "": level for level in element}
            elif local(element) == "style" and _hides(element):
                self.hidden.add(name)

    def write(self, parent: Any, marker: str = "", lists: tuple[str, ...] = ()) -> None:
        """marker: what stands before the first paragraph, of an item. lists: styles of the lists around."""
        for element in parent:
            match local(element):
                case "h" | "p" as kind:
                    self._paragraph(element, kind, marker, bool(lists))
                    marker = ""
                case "list":
                    self._list(element, lists)
                case "table":
                    for row in row_lines([self._cells(row) for row in _rows(element)]):
                        self.out.add(row)
                case "page" if attribute(element, "style-name") in self.hidden:
                    self.out.hidden["slides"] += 1
                case "page":
                    self.out.gap()
                    self.write(element)
                case "frame" if attribute(element, "class") == "title":
                    self.out.heading(1, " ".join(self._inside(element).split()))
                case "tracked-changes":
                    self.out.hidden["deletions"] += sum(local(e) == "deletion" for e in element.iter())
                case "forms" | "sequence-decls" | "settings" | "title" | "desc":
                    continue
                case "section" if attribute(element, "display") == "none":
                    self._pass_over(element)
                case name if name:
                    self.write(element, marker, lists)

    def _paragraph(self, element: Any, kind: str, marker: str, listed: bool) -> None:
        notes: list[str] = []
        is_hidden = attribute(element, "style-name") in self.hidden
        if is_hidden:
            self._pass_over(element)
        text = "" if is_hidden else self._text(element, notes)
        if kind == "h":
            level = attribute(element, "outline-level") or "1"
            self.out.heading(int(level) if re.fullmatch(r"[1-9]\d?", level) else 1, text)
        else:
            self.out.add(marker + text if text.strip() else "", blank=not listed)
        for note in notes:
            self.out.add(note, blank=True)
        if kind == "p" and not listed:
            self.out.gap()

    def _list(self, element: Any, lists: tuple[str, ...]) -> None:
        lists = (*lists, attribute(element, "style-name") or (lists[-1] if lists else ""))
        level = self.lists.get(lists[-1], {}).get(str(len(lists)))
        style = _LIST_STYLES.get(attribute(level, "num-format") or "") if level is not None else None
        number = whole(attribute(level, "start-value"), 1)
        for item in element:
            if local(item) == "list-header":
                self.write(item, "", lists)
            elif local(item) == "list-item":
                number = whole(attribute(item, "start-value"), number)
                marker = "- "
                if style:
                    before, after = attribute(level, "num-prefix") or "", attribute(level, "num-suffix") or ""
                    marker = f"{before}{numeral(number, style)}{after} "
                self.write(item, marker, lists)
                number += 1

    def _cells(self, row: Any) -> list[str]:
        """One entry a column; covered cells are empty."""
        cells = []
        for cell in row:
            if local(cell) in ("table-cell", "covered-table-cell"):
                times = min(whole(attribute(cell, "number-columns-repeated"), 1), MOST_SPAN)
                cells += [self._inside(cell) if local(cell) == "table-cell" else ""] * times
        return cells

    def _inside(self, element: Any) -> str:
        inner = _Open(Extract(self.out.max_chars), [])
        inner.lists, inner.hidden = self.lists, self.hidden
        inner.write(element)
        self.out.hidden += inner.out.hidden
        return inner.out.finish().text

    def _pass_over(self, element: Any) -> None:
        """Leave out what is hidden; counted where it says something."""
        self.out.hidden["texts"] += bool("".join(element.itertext()).strip())

    def _text(self, element: Any, notes: list[str]) -> str:
        """The text of a paragraph; its notes and comments go to `notes`."""
        parts = [" ".join(re.split(r"[ \n]+", element.text or ""))]
        for inner in element:
            match local(inner):
                case "s":
                    parts.append(" " * min(whole(attribute(inner, "c"), 1), 100))
                case "tab":
                    parts.append("\t")
                case "line-break":
                    parts.append("\n")
                case "note":
                    mark = "".join(e.text or "" for e in inner if local(e) == "note-citation").strip()
                    bodies = (self._text(p, notes) for b in inner if local(b) == "note-body" for p in b)
                    notes.append(f"[{mark}] {' '.join(bodies)}")
                    parts.append(f"[{mark}]")
                case "annotation":
                    texts = (self._text(p, notes) for p in inner if local(p) in ("p", "list"))
                    notes.append(f"Comment: {' '.join(texts)}")
                case "table":
                    parts.append("\n".join(["", *row_lines([self._cells(row) for row in _rows(inner)]), ""]))
                case "text-box" | "custom-shape":
                    parts.append(f"\n{self._inside(inner)}\n")
                case "ruby-text":
                    parts.append(f"({self._text(inner, notes)})")
                case "hidden-text" | "hidden-paragraph":
                    self._pass_over(inner)
                case "annotation-end" | "title" | "desc":
                    pass
                case name if name and attribute(inner, "style-name") in self.hidden:
                    self._pass_over(inner)
                case name if name:
                    parts.append(self._text(inner, notes))
            parts.append(" ".join(re.split(r"[ \n]+", inner.tail or "")))
        return "".join(parts)


def _hides(style: Any) -> bool:
    """Whether a style of texts, or of slides, leaves nothing to see."""
    is_text = attribute(child(style, "text-properties"), "display") == "none"
    return is_text or attribute(child(style, "drawing-page-properties"), "visibility") == "hidden"


def _rows(table: Any) -> Iterator[Any]:
    """Rows of a table, those of its header and of groups included, those of tables within cells not."""
    for element in table:
        if local(element) == "table-row":
            yield element
        elif local(element) in ("table-header-rows", "table-row-group", "table-rows"):
            yield from _rows(element)


def _encrypted(package: Package, name: str) -> set[str]:
    """Parts that the package's list of encrypted ones names; fonts are scrambled in many books."""
    root = package.xml(name)
    found: set[str] = set()
    for element in root.iter() if root is not None else ():
        if local(element) == "CipherReference":
            found.add(unquote(element.get("URI") or ""))
        elif local(element) == "encryption-data":
            entry = element.getparent()
            found.add((attribute(entry, "full-path") or "") if entry is not None else "")
    return found
