"""Office slides (pptx, pptm, ppsx, strict or not) to text. Runs in the parser process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.drawings import chart, paragraphs
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import Package, attribute, child, local, whole
from sac_rag.text.numerals import numeral
from sac_rag.text.rows import row_lines

_ASIDE = ("sldNum", "dt", "ftr", "hdr")
"""Placeholders of what stands on every slide."""


def pptx(data: bytes, config: ReadConfig) -> Parsed:
    """Slides in order: titles as headings, texts, tables, diagrams, what the speaker noted, comments. Hidden slides and
    shapes are left out and told."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("encrypted or older powerpoint file")
    package = Package(data, "pptx")
    main = next((r.part for r in package.related("") if r.kind == "officeDocument"), "ppt/presentation.xml")
    root = package.xml(main)
    if root is None:
        raise Refused("damaged pptx")
    slides = {r.id: r.part for r in package.related(main) if r.kind == "slide"}
    out = Extract(config.text_chars)
    missing = total = 0
    for entry in root.iter():
        # Its number is an "id" as well, of no namespace.
        name = next((value for key, value in entry.attrib.items() if key.endswith("}id")), "")
        if local(entry) != "sldId":
            continue
        total += 1
        if (slide := package.xml(slides.get(name, ""))) is None:
            missing += 1
        elif slide.get("show") in ("0", "false"):
            out.hidden["slides"] += 1
        else:
            out.gap()
            _write(out, slide, titles=True)
            _write(out, slide, titles=False)
            out.hidden["shapes"] += sum(map(_is_hidden, slide.iter("{*}sp", "{*}graphicFrame", "{*}grpSp")))
            for relation in package.related(slides[name]):
                _write_more(out, package, relation.kind, relation.part)
    if missing:
        out.notices.append(f"{missing} of {total} slides are missing")
    return out.finish(title=short_title(clean(package.title())))


def _write_more(out: Extract, package: Package, kind: str, part: str) -> None:
    """What belongs to a slide and lies beside it."""
    if kind not in ("notesSlide", "diagramData", "chart", "comments") or (root := package.xml(part)) is None:
        return
    match kind:
        case "comments":
            texts = [e.text or "" for e in root.iter() if local(e) == "text"] or list(paragraphs(root))
            out.add("\n".join(f"Comment: {text}" for text in filter(None, texts)), blank=True)
        case "diagramData":
            out.add("\n".join(paragraphs(root)), blank=True)
        case "chart":
            out.add(chart(root), blank=True)
        case _:
            _write(out, root, only="body")


def _write(out: Extract, parent: Any, *, only: str = "", titles: bool | None = None) -> None:
    """Shapes in the order of the file, titles alone or all others; depth is bounded by lxml's own limit."""
    for element in parent:
        match local(element):
            case "tbl" if not titles:
                for row in row_lines([_cells(row) for row in element if local(row) == "tr"]):
                    out.add(row)
            case "txBody":
                kind = _placeholder(parent)
                if kind in _ASIDE or (only and kind != only):
                    continue
                is_title = kind in ("title", "ctrTitle")
                if titles is not None and titles != is_title:
                    continue
                texts = list(_listed(element))
                if is_title:
                    out.heading(1, " ".join(texts))
                else:
                    out.add("\n".join(texts), blank=True)
                    out.gap()
            case "Fallback":  # it repeats its choice
                continue
            case name if name and not _is_hidden(element):
                _write(out, element, only=only, titles=titles)


def _cells(row: Any) -> list[str]:
    return [" ".join(paragraphs(cell)) for cell in row if local(cell) == "tc"]


def _listed(body: Any) -> Iterator[str]:
    """Paragraphs of a text, those of numbered lists with their numbers."""
    counts: dict[int, int] = {}
    for paragraph in body:
        text = "\n".join(paragraphs(paragraph)) if local(paragraph) == "p" else ""
        if not text:
            continue
        properties = child(paragraph, "pPr")
        level = whole(attribute(properties, "lvl"), 0)
        numbered = child(properties, "buAutoNum")
        counts = {at: count for at, count in counts.items() if at < level or (at == level and numbered is not None)}
        if numbered is not None:
            counts[level] = counts.get(level, whole(attribute(numbered, "startAt"), 1) - 1) + 1
            text = f"{_number(counts[level], numbered.get('type') or '')} {text}"
        yield text


def _number(number: int, kind: str) -> str:
    """A number as PowerPoint writes it: arabicPeriod, alphaLcParenR, romanUcParenBoth, …"""
    match = re.match(r"(alpha|roman)(Lc|Uc)", kind)
    style = {"alpha": "Letter", "roman": "Roman"}[match[1]] if match else ""
    text = numeral(number, f"{'lower' if match[2] == 'Lc' else 'upper'}{style}" if match else "decimal")
    return {"ParenBoth": f"({text})", "ParenR": f"{text})", "Period": f"{text}."}.get(
        re.sub(r"^[a-z]+(?:Lc|Uc)?", "", kind), text
    )


def _is_hidden(shape: Any) -> bool:
    """Whether a shape is switched off in the list of the slide's objects."""
    named = next((e for part in shape if local(part).startswith("nv") for e in part if local(e) == "cNvPr"), None)
    return named is not None and named.get("hidden") in ("1", "true")


def _placeholder(shape: Any) -> str:
    """What a shape is for: title, body, sldNum, …; "" for one of its own."""
    found = next((element for element in shape.iter() if local(element) == "ph"), None)
    return "" if found is None else found.get("type") or "body"
