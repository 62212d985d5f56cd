"""Container formats to text: pdf, docx, html, ipynb. Runs in the parser process, on bytes nobody vouches for."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from sac_rag.text import outlines
from sac_rag.text.cleaning import Refused, clean, decode
from sac_rag.text.extract import Extract, Parsed, short_title

MAX_UNZIPPED_BYTES = 200_000_000

_HIDDEN_TAGS = frozenset("title script style template noscript svg iframe object embed nav select button".split())
_PARAGRAPH_TAGS = frozenset(
    "p ul ol dl table pre blockquote section article aside header footer main figure form hr".split()
)
_LINE_TAGS = frozenset(
    "div head li dt dd tr caption figcaption address details summary fieldset legend option body".split()
)
_HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))


def docx(data: bytes, max_chars: int) -> Parsed:
    """Paragraphs and tables in order, deleted text left out. Headings: the styles Title and Heading 1 to 9."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Refused("encrypted or older word file")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            if sum(info.file_size for info in parts.infolist()) > MAX_UNZIPPED_BYTES:
                raise Refused(f"unzips to over {MAX_UNZIPPED_BYTES} bytes")
    except zipfile.BadZipFile:
        raise Refused("damaged docx") from None

    from docx import Document

    document = Document(io.BytesIO(data))
    styles = {style.style_id: style.name or "" for style in document.styles}
    out = Extract(max_chars)
    for style_id, text in _word_blocks(document.element.body):
        style = styles.get(style_id, "")
        if style == "Title":
            out.heading(1, text)
        elif match := re.fullmatch(r"heading ([1-9])", style.lower()):
            out.heading(int(match[1]), text)
        elif style_id == _ROW:
            out.add(text)
        else:
            out.add(text, blank=True)
            out.gap()
    return out.finish(title=short_title(clean(document.core_properties.title or "")))


_ROW = "(table row)"
_AROUND = frozenset({"sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"})
"""Elements that stand around others and say nothing themselves."""


def _word_blocks(parent: Any) -> Iterator[tuple[str, str]]:
    """(style id or _ROW, text) of paragraphs and table rows; depth is bounded by lxml's own limit."""
    for element in parent:
        match _local(element):
            case "p":
                yield element.style or "", "".join(_word_text(element))
            case "tbl":
                for row in _word_parts(element, "tr"):
                    cells = (" ".join(text for _, text in _word_blocks(cell)) for cell in _word_parts(row, "tc"))
                    yield _ROW, " | ".join(cell for cell in map(str.strip, cells) if cell)
            case name if name in _AROUND:
                yield from _word_blocks(element)


def _word_parts(parent: Any, wanted: str) -> Iterator[Any]:
    """Rows of a table or cells of a row, those within content controls and changes included."""
    for element in parent:
        name = _local(element)
        if name == wanted:
            yield element
        elif name in _AROUND:
            yield from _word_parts(element, wanted)


def _word_text(parent: Any) -> Iterator[str]:
    for element in parent:
        match _local(element):
            case "t":
                yield element.text or ""
            case "tab":
                yield "\t"
            case "br" | "cr":
                yield "\n"
            case "noBreakHyphen":
                yield "-"
            case "pPr" | "rPr" | "del" | "moveFrom" | "Fallback":  # a fallback repeats its choice
                continue
            case "p":  # in a text box
                yield "\n"
                yield from _word_text(element)
            case _:
                yield from _word_text(element)


def _local(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def html(data: bytes, max_chars: int) -> Parsed:
    """Visible text by blocks, without scripts, styles and navigation. Headings: h1 to h6."""
    from bs4 import BeautifulSoup
    from bs4.element import NavigableString, PreformattedString, Tag

    soup = BeautifulSoup(_decode_html(data), "html.parser")
    title = short_title(clean(soup.title.get_text())) if soup.title else ""
    out = Extract(max_chars)
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

    todo: list[tuple[Any, bool]] = [(soup, False)]  # a stack, for pages nested deeper than Python recurses
    while todo:
        node, closing = todo.pop()
        if isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # comments, doctypes
                line.append(str(node).replace(_BREAK, "").replace(_CELL, ""))
            continue
        name = node.name if isinstance(node, Tag) else ""
        if name in _HIDDEN_TAGS:
            continue
        if name == "br":
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
        if not closing:
            todo.append((node, True))
            todo.extend((child, False) for child in reversed(node.contents))
    flush()
    return out.finish(title=title)


_BREAK, _CELL = "\0", "\x01"
"""Stand for <br> and <td> until white space is collapsed."""


def _cells(line: str) -> str:
    return " | ".join(filter(None, (" ".join(cell.split()) for cell in line.split(_CELL))))


def _decode_html(data: bytes) -> str:
    """UTF-8 or a byte order mark, else strictly what the page itself declares."""
    try:
        return decode(data)
    except Refused as refused:
        from bs4.dammit import EncodingDetector

        declared = EncodingDetector.find_declared_encoding(data, is_html=True)
        if str(refused) != "not valid utf-8" or not declared:
            raise
        try:
            return data.decode(declared)
        except (LookupError, ValueError):
            raise refused from None


def ipynb(data: bytes, max_chars: int) -> Parsed:
    """Sources of the cells, without outputs. Headings: those of the markdown cells."""
    import nbformat

    try:
        notebook = nbformat.reads(decode(data), as_version=4)
    except (Refused, RecursionError, MemoryError):
        raise
    except Exception:  # nbformat raises many kinds for a file that is JSON but no notebook
        raise Refused("damaged ipynb") from None
    out = Extract(max_chars)
    for cell in notebook.get("cells", []):
        source = clean(str(cell.get("source", ""))).strip("\n")
        start = out.add(source, blank=True)
        if cell.get("cell_type") == "markdown":
            out.headings.extend((start + at, level, title) for at, level, title in outlines.markdown(source))
    return out.finish()
