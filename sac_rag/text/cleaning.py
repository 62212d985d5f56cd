"""Bytes to clean text: strict decoding, NFC, \\n newlines, no NUL."""

from __future__ import annotations

import codecs
import re
import unicodedata

MAX_MARKS = 64
"""Combining marks allowed in a row; normalising a longer run takes quadratic time."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = re.compile(rb"[^\0]{%d}" % (MAX_MARKS + 1))


class Refused(Exception):
    """Content cannot become text; the message is one short lower-case phrase. Callers add the path."""


def decode(data: bytes) -> str:
    """Strictly decode by byte order mark, else UTF-8; raises Refused for other encodings and binary data."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                raise Refused(f"not valid {encoding.removesuffix('-sig')}") from None
    head = data[:65536]
    if len(head) - len(head.translate(None, _CONTROLS)) > 8 + len(head) // 20:
        raise Refused("binary data")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("binary data" if b"\0" in data else "not valid utf-8") from None


def clean(text: str) -> str:
    """NFC, newlines as \\n, NUL removed, lone surrogates replaced by U+FFFD; raises Refused for runs of marks."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    if text.isascii():
        return text
    text = _SURROGATE.sub("\ufffd", text)
    if _MARKS.search(bytes(map(unicodedata.combining, text))):
        raise Refused(f"over {MAX_MARKS} combining marks in a row")
    return unicodedata.normalize("NFC", text)
