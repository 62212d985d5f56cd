"""EPUB books, and OpenDocument texts and slides. Runs in the parser process."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import Package, attribute, beside, child, local
from sac_rag.text.web import tree_of, write_html


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
    places = {
        item.get("id"): beside(folder, (item.get("href") or "").partition("#")[0])
        for item in book.iter()
        if local(item) == "item"
    }
    chapters = [places[e.get("idref")] for e in book.iter() if local(e) == "itemref" and e.get("idref") in places]
    if set(chapters) & _encrypted(package, "META-INF/encryption.xml"):
        raise Refused("encrypted epub")
    out = Extract(config.text_chars)
    missing = 0
    for chapter in chapters:
        source = package.read(chapter)
        missing += not source
        if source:
            out.gap()
            write_html(tree_of(decode(source, tell=out.notices.append, encoding=config.encoding)), out)
    if missing:
        out.notices.append(f"{missing} of {len(chapters)} chapters are missing")
    title = next((e.text for e in book.iter() if local(e) == "title" and e.text), "")
    return out.finish(title=short_title(clean(title or "")))


def opendocument(data: bytes, config: ReadConfig) -> Parsed:
    """Texts and slides of OpenDocument with lists, tables and notes; headers stand in front, footers behind."""
    package = Package(data, "opendocument file")
    if "content.xml" in _encrypted(package, "META-INF/manifest.xml"):
        raise Refused("encrypted opendocument file")
    content = package.xml("content.xml")
    body = child(content, "body")
    if body is None:
        raise Refused("damaged opendocument file")
    out = Extract(config.text_chars)
    styles = package.xml("styles.xml")
    around = [e for e in styles.iter() if local(e) in ("header", "footer")] if styles is not None else []
    for element in around:
        if local(element) == "header":
            _write_open(out, element)
    for part in body:
        _write_open(out, part)
    for element in around:
        if local(element) == "footer":
            _write_open(out, element)
    meta = package.xml("meta.xml")
    title = next((e.text for e in meta.iter() if local(e) == "title"), "") if meta is not None else ""
    return out.finish(title=short_title(clean(title or "")))


def _write_open(out: Extract, parent: Any, bullet: str = "") -> None:
    """Blocks of OpenDocument; depth is bounded by lxml's own limit."""
    for element in parent:
        match local(element):
            case "h":
                notes: list[str] = []
                level = attribute(element, "outline-level") or "1"
                out.heading(int(level) if re.fullmatch(r"[1-9]\d?", level) else 1, _open_text(element, notes))
                for note in notes:
                    out.add(note, blank=True)
            case "p":
                notes = []
                text = _open_text(element, notes)
                out.add(bullet + text if text.strip() else "", blank=not bullet)
                for note in notes:
                    out.add(note, blank=True)
                if not bullet:
                    out.gap()
            case "list-item" | "list-header":
                _write_open(out, element, "- ")
            case "table-row":
                cells = (_cell(cell) for cell in element if local(cell) == "table-cell")
                out.add(" | ".join(filter(None, cells)))
            case "page":
                out.gap()
                _write_open(out, element)
            case "tracked-changes" | "forms" | "sequence-decls" | "settings":
                continue
            case "section" if attribute(element, "display") == "none":
                continue
            case name if name:
                _write_open(out, element, bullet)


def _cell(cell: Any) -> str:
    inner = Extract(1_000_000)
    _write_open(inner, cell)
    return " ".join(inner.finish().text.split())


def _open_text(element: Any, notes: list[str]) -> str:
    """The text of a paragraph; its notes and comments go to `notes`."""
    parts = [" ".join(re.split(r"[ \n]+", element.text or ""))]
    for inner in element:
        match local(inner):
            case "s":
                parts.append(" " * min(int(attribute(inner, "c") or 1), 100))
            case "tab":
                parts.append("\t")
            case "line-break":
                parts.append("\n")
            case "note":
                mark = "".join(e.text or "" for e in inner if local(e) == "note-citation").strip()
                bodies = (_open_text(p, notes) for b in inner if local(b) == "note-body" for p in b)
                notes.append(f"[{mark}] {' '.join(bodies)}")
                parts.append(f"[{mark}]")
            case "annotation":
                texts = (_open_text(p, notes) for p in inner if local(p) in ("p", "list"))
                notes.append(f"Comment: {' '.join(texts)}")
            case "hidden-text" | "hidden-paragraph" | "annotation-end" | "title" | "desc":
                pass
            case name if name:
                parts.append(_open_text(inner, notes))
        parts.append(" ".join(re.split(r"[ \n]+", inner.tail or "")))
    return "".join(parts)


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
