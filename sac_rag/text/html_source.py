"""The source of a web page made fit for an HTML parser: XHTML as HTML, nesting and attributes bounded."""

from __future__ import annotations

import re
from html import escape
from itertools import islice

MOST_DEPTH = 512
"""Elements within each other, as browsers have it; parsing takes quadratic time in what is nested deeper."""
MOST_ATTRIBUTES_CHARS = 10_000
"""Length of one element's attributes from which on only the first MOST_ATTRIBUTES count."""
MOST_ATTRIBUTES = 200

_VOID = frozenset("area base br col embed hr img input link meta param source track wbr".split())
_UNCOUNTED = _VOID | frozenset(
    "html head body p li dt dd tr td th thead tbody tfoot option optgroup rt rp"  # their ends may go without saying
    " a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark nobr q s samp small span strike"
    " strong sub sup time tt u var".split()
)
"""Elements that are no nesting of blocks."""
_ATTRIBUTE = r"""\s+[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>=]++))?+"""
_EMPTY = re.compile(rf"<([a-zA-Z][\w.:-]*+)((?:{_ATTRIBUTE})*+)\s*/>")
_XHTML = re.compile(
    r"\A\ufeff?\s*(?:<\?xml\b|(?:<!--.*?-->\s*|<!DOCTYPE\b[^>]*>\s*)*<html\b[^>]{0,500}/xhtml\")", re.DOTALL
)
_SUBSET = re.compile(r"(<!DOCTYPE\b[^>\[]*)\[[^\]]*\]\s*>", re.IGNORECASE)
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)
_RAW = re.compile(r"<(script|style)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(
    r"""<!--.*?-->|<(?:script|style|textarea|title|xmp)\b(?s:.)*?</(?:script|style|textarea|title|xmp)\s*>"""
    r"""|<(/?)([a-zA-Z][^\s/>]*+)((?:[^>"']++|"[^"]*+"|'[^']*+'|["'])*+)>""",
    re.DOTALL | re.IGNORECASE,
)
_ANY_ATTRIBUTE = re.compile(_ATTRIBUTE)


def as_html(source: str) -> str:
    """The same page for an HTML parser, which does not know that <script/> or <a/> is empty and goes on within it.

    Pages that are no XHTML stay as they are.
    """
    if not _XHTML.match(source[:5000]):
        return source
    source = _SUBSET.sub(r"\1>", source)
    scripts = [match.span() for match in _RAW.finditer(source)]
    parts: list[str] = []
    at = 0
    for start, end in [*scripts, (len(source), len(source))]:
        text = _CDATA.sub(lambda match: escape(match[1], quote=False), source[at:start])
        parts += (_EMPTY.sub(_opened_and_closed, text), source[start:end])
        at = end
    return "".join(parts)


def _opened_and_closed(match: re.Match[str]) -> str:
    name = match[1]
    return match[0] if name.lower() in _VOID else f"<{name}{match[2]}></{name}>"


def bounded(source: str) -> str:
    """The page without the tags of blocks nested deeper than MOST_DEPTH, and with a bounded number of attributes.

    The text of these blocks stays, each on lines of its own.
    """
    if source.count("<") <= MOST_DEPTH and len(source) <= MOST_ATTRIBUTES_CHARS:
        return source
    open_: list[str] = []
    dropped = 0
    last = -1
    """Where the last tag that was left out ends."""

    def left_out(match: re.Match[str]) -> str:
        nonlocal last
        follows, last = last == match.start(), match.end()
        return "" if follows else "<br>"

    def shown(match: re.Match[str]) -> str:
        nonlocal dropped
        name = (match[2] or "").lower()
        if not name or name in _UNCOUNTED:
            return _few_attributes(match)
        if match[1]:
            if dropped:
                dropped -= 1
                return left_out(match)
            if name in open_:
                while open_.pop() != name:
                    pass
            return match[0]
        if len(open_) >= MOST_DEPTH and not match[3].endswith("/"):
            dropped += 1
            return left_out(match)
        open_.append(name)
        return _few_attributes(match)

    return _TAG.sub(shown, source)


def _few_attributes(match: re.Match[str]) -> str:
    if len(match[3] or "") <= MOST_ATTRIBUTES_CHARS:
        return match[0]
    found = [attribute[0] for attribute in islice(_ANY_ATTRIBUTE.finditer(match[3]), MOST_ATTRIBUTES + 1)]
    return f"<{match[2]}{''.join(found[:-1])}>" if len(found) > MOST_ATTRIBUTES else match[0]
