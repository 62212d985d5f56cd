"""The tree of a web page, as browsers build it, to text: what is seen of it, block by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sac_rag.text.extract import Extract
from sac_rag.text.html_source import as_html, bounded
from sac_rag.text.numerals import numeral
from sac_rag.text.rows import Grid, row_lines

MOST_CONTROL_CHARS = 400
"""Characters beside its links from which on a menu or a button is one that was never closed."""
MOST_STYLE_CHARS = 200_000
MOST_RULES = 200

_HIDDEN_TAGS = frozenset(
    "title script style template noscript iframe object embed datalist video audio canvas noembed noframes rp"
    " annotation annotation-xml desc metadata defs symbol".split()
)
_CONTROL_TAGS = frozenset("nav select button".split())
_PARAGRAPH_TAGS = frozenset(
    "p ul ol dl dir menu table pre xmp listing plaintext blockquote section article aside header footer main nav"
    " figure form hr hgroup search dialog".split()
)
_LINE_TAGS = frozenset(
    "div center head li dt dd tr caption figcaption address details summary fieldset legend option body text".split()
)
_CELL_TAGS = ("td", "th")
_HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_KEPT_TAGS = frozenset("pre xmp listing plaintext".split())
"""Elements whose line ends and blanks are seen."""
_WHOLE_TAGS = ("html", "body")
"""Elements that scripts show when a page is loaded: styles hide them until then."""
_STRUCK_TAGS = frozenset("del s strike".split())
_BLOCKS = "h1, h2, h3, h4, p, table, ul, ol, pre, blockquote, section, article, main, nav, form"
_NO_CELLS = "table, h1, h2, h3, h4, h5, h6, pre, form, section, article"
"""What stands in the cells of tables that lay out a page, and not in those of data."""
MOST_CELL_CHARS = 2000
"""Characters of a cell of data; longer ones hold a page's text."""
_LIST_STYLES = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_UNSEEN = re.compile(
    r"(?i)(?<![\w-])(?:display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)|content-visibility\s*:\s*hidden"
    r"|font-size\s*:\s*0(?:px|pt|em|rem|%)?(?![\d.])|opacity\s*:\s*0(?:\.0+)?%?(?![\d.])"
    r"|color\s*:\s*transparent|(?:left|top|text-indent)\s*:\s*-\d{4,}(?:px|em|rem|pt)"
    r"|clip\s*:\s*rect\((?:\s*[01](?:px)?\s*,?){4}\))"
)
"""Style declarations that leave nothing to see."""
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_MEDIA = re.compile(r"@[\w-]+[^{}]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_STYLE_RULE = re.compile(r"([^{}]{1,300})\{([^{}]{0,2000})\}")


_NO_MARKER = re.compile(r"(?i)list-style(?:-type)?\s*:\s*[^;]*none")


def tree_of(source: str) -> Any:
    """The page as browsers build it."""
    from selectolax.lexbor import LexborHTMLParser

    return LexborHTMLParser(bounded(as_html(source)))


def write_html(page: Any, out: Extract) -> None:
    """Write the visible text of a page, a tree of selectolax, by blocks.

    What the page's own styles hide stays out, unless nothing else is left: such pages are shown by scripts.
    """
    before = out.length
    hidden = _hidden_by_styles(page)
    _Writer(out, hidden).write(page.root)
    if hidden and out.length == before:
        _Writer(out, set()).write(page.root)
        if out.length > before:
            out.notices.append("all text is hidden by styles and read nonetheless")


@dataclass
class _List:
    """An open list: the number of its next item, and how it is written; no style for bullets."""

    style: str = ""
    next: int = 1
    step: int = 1

    def marker(self, item: Any) -> str:
        if not self.style:
            return "- "
        if self.style == "none":
            return ""
        number = self.next if (value := _whole(item.attributes.get("value"))) is None else value
        self.next = number + self.step
        return f"{numeral(number, self.style)}. "


class _Writer:
    """Walks a page once; `line` is what was read of the block that is open."""

    def __init__(self, out: Extract, hidden: set[int]) -> None:
        self.out, self.hidden = out, hidden
        self.line: list[str] = []
        self.heading = self.kept = 0
        self.lists: list[_List] = []
        self.marker = ""
        """Of an item of a list that has said nothing yet."""
        self.grid: Grid | None = None
        """Of the table of data that is open."""
        self.struck: list[int] = []
        self.raised: list[int] = []
        """Places in `line` where struck and raised text begins."""

    def write(self, root: Any) -> None:
        for node, closing in _walk(root, lambda node: node.mem_id in self.hidden or _is_hidden(node)):
            name = node.tag
            if name == "-text":
                if not closing and not _is_between_shapes(node):
                    self._text((node.text_content or "").replace(_BREAK, ""))
            elif name == "br":
                if not closing:
                    self.line.append(" " if self.grid else "\n" if self.kept else _BREAK)
            elif self.grid is not None and name != "caption":
                self._in_table(node, closing)
            elif name == "table" and not closing and _is_data(node):
                self._flush()
                self.out.gap()
                self.grid = Grid()
            elif level := _heading_level(node):
                self._flush()
                self.heading = 0 if closing else level
            elif name in _PARAGRAPH_TAGS or name in _LINE_TAGS or name in _CELL_TAGS:
                self._block(node, closing)
            else:
                self._inline(node, closing)
        self._flush()

    def _block(self, node: Any, closing: bool) -> None:
        self._flush()
        name = node.tag
        if name in _PARAGRAPH_TAGS:
            self.out.gap()
        if name in _KEPT_TAGS:
            self.kept = max(0, self.kept + (-1 if closing else 1))
        if name in ("ul", "ol", "menu", "dir"):
            if not closing:
                self.lists.append(_list(node))
            elif self.lists:
                self.lists.pop()
        if name == "li":
            self.marker = "" if closing else (self.lists[-1] if self.lists else _List()).marker(node)

    def _in_table(self, node: Any, closing: bool) -> None:
        """Cells are kept until the table ends; blocks within a cell part words."""
        grid, name = self.grid, node.tag
        assert grid is not None
        if name == "tr" and not closing:
            grid.row()
        elif name in _CELL_TAGS:
            if closing:
                spans = (_whole(node.attributes.get(key)) or 1 for key in ("colspan", "rowspan"))
                grid.cell("".join(self.line), *spans)
            self.line.clear()
        elif name == "table" and closing:
            self.grid = None
            for row in row_lines(grid.rows):
                self.out.add(row)
            self.line.clear()
            self.out.gap()
        elif name in _PARAGRAPH_TAGS or name in _LINE_TAGS:
            self.line.append(" ")
        else:
            self._inline(node, closing)

    def _inline(self, node: Any, closing: bool) -> None:
        """Marks without which words would run into each other, or numbers would be others."""
        match node.tag:
            case name if name in _STRUCK_TAGS:
                self._strike(closing)
            case "sup" if not closing:
                self.raised.append(len(self.line))
            case "sup" if self.raised:
                at = self.raised.pop()
                if _is_exponent("".join(self.line[:at][-3:]), "".join(self.line[at:])):
                    self.line.insert(at, "^")
            case "rt":
                self.line.append(")" if closing else "(")

    def _strike(self, closing: bool) -> None:
        """Struck text stands between ~~ as in Markdown, apart from what follows."""
        if not closing:
            if self.line and self.line[-1][-1:].isalnum():
                self.line.append(" ")
            self.struck.append(len(self.line))
            self.line.append("~~")
        elif self.struck and (at := self.struck.pop()) < len(self.line):
            if "".join(self.line[at + 1 :]).strip():
                self.line.append("~~")
            else:
                del self.line[at:]

    def _text(self, text: str) -> None:
        if self.line and self.line[-1] == "~~" and len(self.line) - 1 not in self.struck and text[:1].isalnum():
            self.line.append(" ")
        if text:
            self.line.append(text)

    def _flush(self) -> None:
        text = "".join(self.line)
        self.line.clear()
        self.struck.clear()
        self.raised.clear()
        if not self.kept:
            text = "\n".join(" ".join(part.split()) for part in text.split(_BREAK))
        if not text.strip():
            return
        if self.heading:
            self.out.heading(self.heading, self.marker + text.replace("\n", " "))
        else:
            self.out.add(self.marker + text.strip("\n"))
        self.marker = ""


def _list(node: Any) -> _List:
    if node.tag != "ol":
        return _List()
    attributes = node.attributes
    if _NO_MARKER.search(attributes.get("style") or ""):
        return _List("none")
    step = -1 if "reversed" in attributes else 1
    first = _whole(attributes.get("start"))
    if first is None:
        first = 1 if step > 0 else sum(child.tag == "li" for child in node.iter())
    return _List(_LIST_STYLES.get(attributes.get("type") or "", "decimal"), first, step)


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\s*-?\d{1,9}\s*", text) else None


def _is_data(table: Any) -> bool:
    """Whether a table is one of data, read row by row, and not one that lays out the page."""
    inner = (node for node in table.css(_NO_CELLS) if node.mem_id != table.mem_id)
    return next(inner, None) is None and all(len(cell.text()) <= MOST_CELL_CHARS for cell in table.css("td, th"))


def _heading_level(node: Any) -> int:
    """By the element's name or its role; 0 for what is no heading."""
    if node.tag in _HEADING_TAGS:
        return int(node.tag[1])
    if node.tag[0] == "-" or node.attributes.get("role") != "heading":
        return 0
    level = _whole(node.attributes.get("aria-level"))
    return level if level and 1 <= level <= 6 else 2


def _is_exponent(before: str, raised: str) -> bool:
    """Whether a raised number would run into the number or bracket in front of it: 10^6, 2019^3."""
    return bool(re.search(r"[\d)]$", before) and re.match(r"[-+\u2212\u2013]?\d", raised))


def _is_between_shapes(text: Any) -> bool:
    """Whether a text lies in a drawing and is none of its labels: white space, or a part of a shape."""
    parent = text.parent
    return parent is not None and parent.tag in ("svg", "g", "path")


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
    if name in _WHOLE_TAGS:
        return False
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
                    found.update(node.mem_id for node in page.css(rule[1].strip()) if node.tag not in _WHOLE_TAGS)
                except Exception:  # no selector that browsers know either
                    continue
    return found


_BREAK = "\0"
"""Stands for <br> until white space is collapsed."""
