"""XML to text: elements without others are "name: value" lines, texts with markup within them are paragraphs."""

from __future__ import annotations

from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.markup import local, xml_root

_TITLES = frozenset("title head heading h1 h2 h3 subject headline".split())
_PLAIN = frozenset(
    "p para simpara text body content description summary value item entry line l s seg ab li td".split()
)
"""Elements whose names say nothing about what stands in them."""
MOST_DEPTH = 200


def xml(data: bytes, config: ReadConfig) -> Parsed:
    """Texts and attributes in the declared encoding; titles are headings of what stands beside them.

    A file that is not well formed is read as it is.
    """
    out = Extract(config.text_chars)
    try:
        root = xml_root(data, "xml")
    except Refused as refused:
        if str(refused) != "damaged xml":
            raise
        out.add(decode(data, tell=out.notices.append, encoding=config.encoding))
        out.notices.append("not well-formed xml, read as text")
        return out.finish()
    _write(out, root, 1)
    return out.finish()


def _write(out: Extract, element: Any, depth: int) -> None:
    name = local(element)
    if not name:  # comments and instructions
        return
    inner = [child for child in element if local(child)]
    own = "".join([element.text or "", *(child.tail or "" for child in element)]).strip()
    attributes = [(key.rpartition("}")[2], value.strip()) for key, value in element.attrib.items()]

    if own or not inner:
        text = " ".join("".join(element.itertext(tag="*")).split())
        if name.lower() in _TITLES and short_title(text) == text:
            out.heading(min(depth, 6), text)
            return
        if text:
            out.add(text if name.lower() in _PLAIN else f"{name}: {text}", blank=bool(inner))
        _write_attributes(out, name, attributes)
        return
    out.gap()
    _write_attributes(out, name, attributes)
    for child in inner:
        _write(out, child, min(depth + 1, MOST_DEPTH))
    out.gap()


def _write_attributes(out: Extract, name: str, attributes: list[tuple[str, str]]) -> None:
    out.add("\n".join(f"{name}.{key}: {value}" for key, value in attributes if value))
