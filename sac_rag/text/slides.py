"""Office slides (pptx, pptm, ppsx, strict or not) to text. Runs in the parser process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import Package, local

_ASIDE = ("sldNum", "dt", "ftr", "hdr")
"""Placeholders of what stands on every slide."""


def pptx(data: bytes, config: ReadConfig) -> Parsed:
    """Slides in order: titles as headings, texts, tables, diagrams, what the speaker noted, comments."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("encrypted or older powerpoint file")
    package = Package(data, "pptx")
    main = next((r.part for r in package.related("") if r.kind == "officeDocument"), "ppt/presentation.xml")
    root = package.xml(main)
    if root is None:
        raise Refused("damaged pptx")
    slides = {r.id: r.part for r in package.related(main) if r.kind == "slide"}
    out = Extract(config.text_chars)
    for entry in root.iter():
        # Its number is an "id" as well, of no namespace.
        name = next((value for key, value in entry.attrib.items() if key.endswith("}id")), "")
        if local(entry) == "sldId" and (slide := package.xml(slides.get(name, ""))) is not None:
            out.gap()
            _write(out, slide)
            for relation in package.related(slides[name]):
                _write_more(out, package, relation.kind, relation.part)
    return out.finish(title=short_title(clean(package.title())))


def _write_more(out: Extract, package: Package, kind: str, part: str) -> None:
    """What belongs to a slide and lies beside it."""
    if kind not in ("notesSlide", "diagramData", "comments") or (root := package.xml(part)) is None:
        return
    if kind == "comments":
        out.add("\n".join(f"Comment: {e.text}" for e in root.iter() if local(e) == "text" and e.text), blank=True)
    elif kind == "diagramData":
        out.add("\n".join(_paragraphs(root)), blank=True)
    else:
        _write(out, root, only="body")


def _write(out: Extract, parent: Any, only: str = "") -> None:
    """Shapes in the order of the file; depth is bounded by lxml's own limit."""
    for element in parent:
        match local(element):
            case "tr":
                cells = (" ".join(" ".join(_paragraphs(cell)).split()) for cell in element if local(cell) == "tc")
                out.add(" | ".join(filter(None, cells)))
            case "txBody":
                kind = _placeholder(parent)
                if kind in _ASIDE or (only and kind != only):
                    continue
                texts = list(_paragraphs(element))
                if kind in ("title", "ctrTitle"):
                    out.heading(1, " ".join(texts))
                else:
                    out.add("\n".join(texts), blank=True)
                    out.gap()
            case "Fallback":  # it repeats its choice
                continue
            case name if name:
                _write(out, element, only)


def _paragraphs(parent: Any) -> Iterator[str]:
    for paragraph in parent.iter():
        if local(paragraph) == "p" and (text := "".join(map(_run, paragraph.iter())).strip()):
            yield text


def _run(element: Any) -> str:
    return (element.text or "") if local(element) == "t" else "\n" if local(element) == "br" else ""


def _placeholder(shape: Any) -> str:
    """What a shape is for: title, body, sldNum, …; "" for one of its own."""
    found = next((element for element in shape.iter() if local(element) == "ph"), None)
    return "" if found is None else found.get("type") or "body"
