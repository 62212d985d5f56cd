"""Web pages and notebooks to text. Runs in the parser process, on bytes nobody vouches for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text import outlines
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.encodings import Tell, decode
from sac_rag.text.extract import Extract, Parsed, short_title

MOST_CONTROL_CHARS = 400
"""Characters beside its links from which on a menu or a button is one that was never closed."""
MOST_STYLE_CHARS = 200_000
MOST_RULES = 200

_HIDDEN_TAGS = frozenset("title script style template noscript svg iframe object embed datalist".split())
_CONTROL_TAGS = frozenset("nav select button".split())
_PARAGRAPH_TAGS = frozenset(
    "p ul ol dl table pre blockquote section article aside header footer main figure form hr".split()
)
_LINE_TAGS = frozenset(
    "div head li dt dd tr caption figcaption address details summary fieldset legend option body".split()
)
_HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCKS = "h1, h2, h3, h4, p, table, ul, ol, pre, blockquote, section, article, main, nav, form"
_META = re.compile(rb"<meta\s[^>]{0,300}?\bcharset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
_HTML_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_UNSEEN = re.compile(
    r"(?i)(?<![\w-])(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|content-visibility\s*:\s*hidden"
    r"|font-size\s*:\s*0(?:px|pt|em|rem|%)?(?![\d.])|opacity\s*:\s*0(?:\.0+)?%?(?![\d.]))"
)
"""Style declarations that leave nothing to see."""
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_MEDIA = re.compile(r"@[\w-]+[^{}]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_STYLE_RULE = re.compile(r"([^{}]{1,300})\{([^{}]{0,2000})\}")


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
    return out.finish(title=short_title(clean(title.text())) if title else "")


def write_html(page: Any, out: Extract) -> None:
    """Write the visible text of a page, a tree of selectolax, by blocks."""
    hidden = _hidden_by_styles(page)
    line: list[str] = []
    heading, pre = 0, 0

    def flush() -> None:
        text = "".join(line)
        line.clear()
        if not pre:
            text = "\n".join(_cells(part) for part in text.split(_BREAK))
        if heading:
            out.heading(heading, text.replace("\n", " "))
        else:
            out.add(text)

    for node, closing in _walk(page.root, lambda node: node.mem_id in hidden or _is_hidden(node)):
        name = node.tag
        if name == "-text":
            line.append("" if closing else (node.text_content or "").replace(_BREAK, "").replace(_CELL, ""))
        elif name == "br":
            if not closing:
                line.append("\n" if pre else _BREAK)
        elif name in _PARAGRAPH_TAGS or name in _LINE_TAGS or name in _HEADING_TAGS:
            flush()
            if name in _PARAGRAPH_TAGS:
                out.gap()
            if name in _HEADING_TAGS:
                heading = 0 if closing else int(name[1])
            if name == "pre":
                pre = max(0, pre + (-1 if closing else 1))
            if name == "li" and not closing:
                line.append("- ")
        elif name in ("td", "th") and not closing:
            line.append(_CELL)
    flush()


def tree_of(source: str) -> Any:
    """The page as browsers build it."""
    from selectolax.lexbor import LexborHTMLParser

    return LexborHTMLParser(source)


def _walk(root: Any, skip: Callable[[Any], bool]) -> Iterator[tuple[Any, bool]]:
    """(node, whether it ends here) in order; pages are nested deeper than Python recurses."""
    node: Any = root
    while node is not None:
        if not skip(node):
            yield node, False
            if node.child is not None:
                node = node.child
                continue
            yield node, True
        while node is not None and node.next is None:
            node = node.parent
            if node is None or node.mem_id == root.mem_id:
                return
            yield node, True
        node = node.next if node is not None else None


def _is_hidden(node: Any) -> bool:
    """Whether neither this nor what stands in it is seen, or it is no part of what the page says."""
    name = node.tag
    if name in _HIDDEN_TAGS:
        return True
    if name[0] == "-":  # texts, and other than elements
        return bool(name != "-text")
    if name in _CONTROL_TAGS:
        return not _holds_content(node)
    attributes = node.attributes
    if "hidden" in attributes and (attributes["hidden"] or "").lower() != "until-found":
        return True
    if name == "dialog" and "open" not in attributes:
        return True
    return bool(_UNSEEN.search(attributes.get("style") or ""))


def _holds_content(control: Any) -> bool:
    """Whether a menu or a button that was never closed swallowed the page."""
    if control.css_first("h1, h2, main, article, section, table, p + p" if control.tag == "nav" else _BLOCKS):
        return True
    links = sum(len(link.text()) for link in control.css("a"))
    return len(control.text()) - links > MOST_CONTROL_CHARS


def _hidden_by_styles(page: Any) -> set[int]:
    """Elements that the page's own style sheets hide, by id; rules for media and for states are passed over."""
    found: set[int] = set()
    for style in page.css("style"):
        rules = _STYLE_RULE.finditer(_MEDIA.sub("", _COMMENT.sub("", style.text()[:MOST_STYLE_CHARS])))
        for rule in islice((r for r in rules if _UNSEEN.search(r[2])), MOST_RULES):
            if ":" not in rule[1] and "@" not in rule[1]:
                try:
                    found.update(node.mem_id for node in page.css(rule[1].strip()))
                except Exception:  # no selector that browsers know either
                    continue
    return found


_BREAK, _CELL = "\0", "\x01"
"""Stand for <br> and <td> until white space is collapsed."""


def _cells(line: str) -> str:
    return " | ".join(filter(None, (" ".join(cell.split()) for cell in line.split(_CELL))))


def _decode_html(data: bytes, encoding: str | None = None, tell: Tell = lambda notice: None) -> str:
    """By byte order mark, by what the page declares, as browsers understand its labels, or by what it looks like."""
    declared = _META.search(_HTML_COMMENT.sub(b"", data[:8192]))
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
    cells = [c for sheet in _dicts(sheets) for c in _dicts(sheet.get("cells"))] + _dicts(notebook.get("cells"))
    if not cells and "cells" not in notebook and not sheets:
        raise Refused("damaged ipynb")
    for cell in cells:
        source = clean(_written(cell.get("source") or cell.get("input"))).strip("\n")
        kind = cell.get("cell_type")
        if kind == "heading":
            level = cell.get("level")
            out.heading(level if isinstance(level, int) and 1 <= level <= 6 else 1, source)
            continue
        start = out.add(source, blank=True)
        if kind == "markdown":
            out.headings.extend((start + at, level, title) for at, level, title in outlines.markdown(source))
        for output in _dicts(cell.get("outputs")):
            out.add(_output(output), blank=True)
    return out.finish()


def _output(output: dict[str, Any]) -> str:
    """What a cell printed or returned, as text; without warnings, errors and the names of pictures."""
    if output.get("output_type") == "stream":
        return "" if (output.get("name") or output.get("stream")) == "stderr" else _written(output.get("text"))
    data = output.get("data") if isinstance(output.get("data"), dict) else output
    assert isinstance(data, dict)
    text = _written(data.get("text/markdown") or data.get("text/plain") or data.get("text"))
    return "" if re.fullmatch(r"\s*<[^<>]*>\s*", text) else text


def _written(value: Any) -> str:
    """A text, or its lines in a list."""
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
