"""PDF to text, page by page, by PDFium. Runs in the parser process, on bytes nobody vouches for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.hyphens import joined
from sac_rag.text.layout import Line, Piece, lines_of, page_text
from sac_rag.text.parts import numbered
from sac_rag.text.pdf_forms import filled_in, notes_of
from sac_rag.text.pdf_pieces import pieces_of

MARGIN = 0.08
"""Share of a page's height, above and below, in which running heads and page numbers stand."""
REPEATED = 3
"""Pages that must have the same words at the same height for these to be a running head."""
_NUMBER = re.compile(
    r"(?i)[-\u2013\u2014|\[( ]*(?:(?:page|p\.|seite|s\.|p[a\u00e1]gina|str\.?)\s*)?(?:\d{1,5}|[ivxlc]{1,7})"
    r"(?:\s*(?:of|/|von|de|sur|di|z)\s*\d{1,5})?[-\u2013\u2014|\]) ]*"
)
"""A page number alone: 7, xii, - 7 -, 7 / 90, Page 7 of 90."""
_ROOT = re.compile(rb"(\d{1,10})\s+0\s+obj\s{0,9}<<(?:(?!endobj).){0,2000}?/Type\s{0,9}/Catalog\b", re.DOTALL)
_FIRST_NUMBER = re.compile(r"\A\D*(\d{1,5})(?!\d)")
_LAST_NUMBER = re.compile(r"(?<!\d)(\d{1,5})\D*\Z")
_LEADER = re.compile(r" ?(?:\.[ .]?){5,}")
"""Dots between an entry of a table of contents and its page."""
_TITLE_CHARS = 1000
_XFA = 2
"""PDFium's number for forms whose pages are made when they are shown."""

_Place = tuple[str, int, int]
"""(words, height in steps of two points, distance of a number among the words to that of the page)."""


@dataclass
class _Page:
    """A page's text in pieces, what is noted on it, and where its edges are (points)."""

    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bottom: float = 0.0
    top: float = 0.0
    mapped: bool = True
    """Whether the file says which letters its glyphs are."""
    unseen: bool = False
    """Whether it holds text that is not seen, and not read."""

    def in_margin(self, piece: Piece) -> bool:
        margin = MARGIN * (self.top - self.bottom)
        return piece.top > self.top - margin or piece.bottom < self.bottom + margin

    def text(self) -> str:
        parts = [page_text(self.pieces), *self.notes]
        return _LEADER.sub(" \u2026 ", "\n\n".join(part for part in parts if part).replace("\f", " "))


def pdf(data: bytes, config: ReadConfig) -> Parsed:
    """Pages in order, an empty line between them; meta["pages"] is the offset of each page. Headings: the outline.

    Values of form fields stand where they are seen, notes behind the text of their page. Running heads stay at their
    first place alone, page numbers nowhere. Pages that cannot be read are left out, and so is text that a reader of the
    page does not see (`pdf_seen`); meta["notices"] names them.
    """
    document = _opened(data)
    read, lost, scanned = _read_pages(document, config.text_chars)
    if not read or len(lost) == len(read):
        raise Refused("damaged pdf")
    _drop_running_heads(read)
    out = Extract(config.text_chars)
    pages = [out.add(text, blank=True) for text in _whole_words([page.text() for page in read])]
    if lost:
        out.notices.append(numbered(lost, len(read), "pages could not be read"))
    if scanned and len(scanned) < len(read):
        out.notices.append(numbered(scanned, len(read), "pages hold pictures and no text"))
    if unknown := [number for number, page in enumerate(read, 1) if not page.mapped]:
        out.notices.append(numbered(unknown, len(read), "pages do not say which letters they show"))
    if hidden := [number for number, page in enumerate(read, 1) if page.unseen]:
        out.notices.append(numbered(hidden, len(read), "pages hold text that is not seen and not read"))
    if attached := [document.get_attachment(n).get_name() for n in range(document.count_attachments())]:
        out.notices.append(f"{len(attached)} attachments not read: {', '.join(attached)}"[:300])
    if document.get_formtype() == _XFA:
        out.notices.append("a form (XFA) that its program draws is not read")
    parsed = out.finish(pages=pages, title=short_title(clean(_title(document))))
    for level, title, page in _outline(document):
        if 0 <= page < len(pages) and (short := short_title(clean(title))):
            end = pages[page + 1] if page + 1 < len(pages) else out.length
            at = parsed.text.find(short, pages[page], end)
            parsed.headings.append((at if at >= 0 else pages[page], level, short))
    return parsed


def _opened(data: bytes) -> Any:
    """The document; of a file whose end is cut off, what its root still names."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise Refused("encrypted pdf") from None
        roots = _ROOT.findall(data)
        if not roots or b"/Encrypt" in data:
            raise Refused("damaged pdf") from None
        try:
            document = pypdfium2.PdfDocument(data + b"\ntrailer << /Root %s 0 R >>\n%%%%EOF\n" % roots[-1])
        except pypdfium2.PdfiumError:
            raise Refused("damaged pdf") from None
    if document.get_formtype():
        document.init_forms()
    return document


def _read_pages(document: Any, max_chars: int) -> tuple[list[_Page], list[int], list[int]]:
    """(all pages, numbers of those that could not be read, numbers of those that only hold pictures)."""
    import pypdfium2

    pages: list[_Page] = []
    lost, scanned = list[int](), list[int]()
    chars = 0
    for number in range(1, len(document) + 1):
        page = _Page()
        try:
            sheet = document[number - 1]
            found = pieces_of(sheet)
            (_, page.bottom, _, page.top), page.mapped, page.unseen = found.edges, found.mapped, found.unseen
            page.pieces = filled_in(sheet, found.pieces)
            page.notes = notes_of(sheet)
            if not page.pieces and not page.notes and _has_picture(sheet):
                scanned.append(number)
            sheet.close()
        except (pypdfium2.PdfiumError, ValueError):
            lost.append(number)
        chars += sum(len(piece.text) for piece in page.pieces)
        if chars > max_chars:
            raise Refused(f"text over {max_chars} characters")
        pages.append(page)
    return pages, lost, scanned


def _has_picture(sheet: Any) -> bool:
    import pypdfium2.raw as c

    return any(thing.type == c.FPDF_PAGEOBJ_IMAGE for thing in sheet.get_objects(max_depth=3))


def _drop_running_heads(pages: Sequence[_Page]) -> None:
    """Take whole lines out of the margins that stand at one height on several pages: words but for their first time,
    and page numbers. From the edge inwards, up to the first line that is anything else."""
    found: dict[_Place, set[int]] = defaultdict(set)
    for number, page in enumerate(pages):
        for piece in page.pieces:
            if page.in_margin(piece):
                for place in _places(piece, number):
                    found[place].add(number)
    first = {place: min(numbers) for place, numbers in found.items() if len(numbers) >= REPEATED}
    for number, page in enumerate(pages):
        lines = lines_of(page.pieces)
        for line in (*_running(lines, page, number, first), *_running(lines[::-1], page, number, first)):
            repeated = all(_is_repeated(piece, number, first) for piece in line)
            if repeated and len(page.pieces) > len(line):
                page.pieces = [piece for piece in page.pieces if piece not in line]


def _running(lines: Sequence[Line], page: _Page, number: int, known: Mapping[_Place, int]) -> Iterator[Line]:
    for line in lines:
        if not all(page.in_margin(piece) and any(p in known for p in _places(piece, number)) for piece in line):
            return
        yield line


def _is_repeated(piece: Piece, number: int, first: Mapping[_Place, int]) -> bool:
    """Whether a running piece stands on an earlier page too, or is nothing but a page number."""
    return any(place in first and (not place[0] or first[place] < number) for place in _places(piece, number))


def _places(piece: Piece, number: int) -> Iterator[_Place]:
    """What a piece says, and where, as on other pages: a page number alone says nothing; one beside words, the first or
    the last number of these, is known by its distance to the page's own."""
    words = " ".join(piece.text.split())
    height = round(piece.bottom / 2)
    if _NUMBER.fullmatch(words):
        yield "", height, 0
        return
    yield words, height, 0
    for pattern in (_FIRST_NUMBER, _LAST_NUMBER):
        if match := pattern.search(words):
            yield f"{words[: match.start(1)]}\0{words[match.end(1) :]}", height, int(match[1]) - number


def _whole_words(texts: Sequence[str]) -> list[str]:
    """Pages with broken words joined, also those that go on overleaf."""
    texts = list(texts)
    for n in range(len(texts) - 1):
        first, rest = [*texts[n + 1].split(maxsplit=1), "", ""][:2]
        if texts[n][-2:-1].islower() and texts[n].endswith("-") and first[:1].islower():
            texts[n], texts[n + 1] = f"{texts[n]}\n{first}", rest
    whole, _ = joined("\n\f\n".join(texts))
    return whole.split("\n\f\n")


def _title(document: Any) -> str:
    try:
        return str(document.get_metadata_value("Title"))[:_TITLE_CHARS]
    except Exception:  # the text is good; a broken title is no reason to lose it
        return ""


def _outline(document: Any) -> list[tuple[int, str, int]]:
    """(level, title, page number from 0); empty if the outline is broken."""
    found: list[tuple[int, str, int]] = []
    try:
        for mark in document.get_toc():
            to = mark.get_dest()
            page = to.get_index() if to else None
            found.append((mark.level + 1, mark.get_title()[:_TITLE_CHARS], -1 if page is None else page))
    except Exception:  # as above: headings are a bonus
        return []
    return found
