"""Web pages and notebooks to text. Runs in the parser process, on bytes nobody vouches for."""

from __future__ import annotations

import json
import re
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text import outlines
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.encodings import Tell, decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.parts import Parts
from sac_rag.text.web import tree_of, write_html

_META = re.compile(rb"<meta\s[^>]{0,300}?\bcharset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_HTML_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_LOOKED_AT = 200_000
"""Bytes of a page that are searched for the encoding that it declares."""


def html(data: bytes, config: ReadConfig) -> Parsed:
    """Visible text by blocks, as browsers build the page, without scripts and navigation. Headings: h1 to h6.

    With `main_text` the page's main text alone.
    """
    out = Extract(config.text_chars)
    source = _decode_html(data, config.encoding, out.notices.append)
    page = tree_of(source)
    title = page.css_first("title")
    if config.main_text:
        main = _main_text(source)
        if main is None:
            out.notices.append("no main text found, whole page read")
        else:
            page = tree_of(main)
    write_html(page, out)
    if frames := page.css("frame"):
        for inner in page.css("noframes"):
            write_html(tree_of(inner.text()), out)
        out.notices.append(f"{len(frames)} frame{'s' * (len(frames) > 1)} of other files not read")
    return out.finish(title=short_title(clean(title.text())) if title else "")


def _decode_html(data: bytes, encoding: str | None = None, tell: Tell = lambda notice: None) -> str:
    """By byte order mark, by what the page declares, as browsers understand its labels, or by what it looks like."""
    declared = _META.search(_HTML_COMMENT.sub(b"", data[:_LOOKED_AT]))
    return decode(data, tell=tell, declared=declared[1].decode("ascii") if declared else None, encoding=encoding)


def _main_text(source: str) -> str | None:
    """The page without what stands around its text, as HTML; None if there is nothing else."""
    import trafilatura

    return trafilatura.extract(
        source, output_format="html", include_tables=True, include_links=False, favor_recall=True
    )


def ipynb(data: bytes, config: ReadConfig) -> Parsed:
    """Cells of a notebook of any version: sources, and the text of their outputs. Headings: those of Markdown cells."""
    out = Extract(config.text_chars)
    try:
        notebook = json.loads(decode(data, tell=out.notices.append, encoding=config.encoding))
    except ValueError:
        raise Refused("damaged ipynb") from None
    if not isinstance(notebook, dict):
        raise Refused("damaged ipynb")
    sheets = notebook.get("worksheets")  # formats 2 and 3
    cells = [c for sheet in _dicts(sheets) for c in _list(sheet.get("cells"))] + _list(notebook.get("cells"))
    if not cells and "cells" not in notebook and not sheets:
        raise Refused("damaged ipynb")
    parts = Parts(out, "cells", "damaged cell")
    for cell in cells:
        with parts.one():
            _cell(out, cell)
    parts.tell()
    return out.finish()


def _cell(out: Extract, cell: Any) -> None:
    source = cell.get("source") or cell.get("input") or ""
    if isinstance(source, list):
        source = "".join(source)
    source = clean(source).strip("\n")
    kind = cell.get("cell_type")
    if kind == "heading":
        level = cell.get("level")
        out.heading(level if isinstance(level, int) and 1 <= level <= 6 else 1, source)
        return
    start = out.add(source, blank=True)
    if kind == "markdown":
        out.headings.extend((start + at, level, title) for at, level, title in outlines.markdown(source))
    for output in _dicts(cell.get("outputs")):
        out.add(_output(output), blank=True)


def _output(output: dict[str, Any]) -> str:
    """What a cell printed or returned, as text; without warnings, errors and the names of pictures."""
    if output.get("output_type") == "stream":
        stderr = (output.get("name") or output.get("stream")) == "stderr"
        return "" if stderr else _printed(_written(output.get("text")))
    data = output.get("data") if isinstance(output.get("data"), dict) else output
    assert isinstance(data, dict)
    text = _printed(_written(data.get("text/markdown") or data.get("text/plain") or data.get("text")))
    if not text.strip() or re.fullmatch(r"\s*<[^<>]*>\s*", text):
        text = _written(data.get("text/latex"))
        if page := _written(data.get("text/html")):
            shown = Extract(len(page) + 1)
            write_html(tree_of(page), shown)
            text = shown.finish().text
    return text


def _printed(text: str) -> str:
    """What a terminal shows: no colours, and of lines that are written over the last state."""
    return re.sub(r"[^\n]*\r(?=[^\n\r])", "", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n"))


def _written(value: Any) -> str:
    """A text, or its lines in a list."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in _list(value) if isinstance(item, dict)]
