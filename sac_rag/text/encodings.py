"""Bytes to text: byte order marks, UTF-8, what a file declares, what it looks like. Nothing is lost without a word."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable

from sac_rag.config import is_text_encoding
from sac_rag.text.cleaning import Refused

Tell = Callable[[str], None]
"""Takes a notice: one short phrase on what was replaced or guessed."""

SAMPLE = 200_000
"""Bytes that an encoding is guessed from."""
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\v\f\r\b\x1b"))
_DECLARED = (
    re.compile(rb"\A\s*<\?xml[^>]{0,200}?\bencoding\s*=\s*[\"']([\w.:-]{2,40})"),
    re.compile(rb"\A@charset\s+\"([\w.:-]{2,40})\""),
    re.compile(rb"\A(?:[^\n]*\n)?[^\n]*?coding[:=][ \t]*([\w.-]{2,40})"),  # PEP 263, Emacs, Vim
    re.compile(rb"^[^%\n]*\\(?:usepackage\[(\w{2,20})\]\{inputenc\}|inputencoding\{(\w{2,20})\})", re.MULTILINE),
)
"""What a file of text says of its own encoding, in its first bytes."""
_TEX = {"ansinew": "windows-1252", "applemac": "macintosh", "latin9": "iso-8859-15", "utf8x": "utf-8"}
_STATEFUL = re.compile(rb"\x1b[$(]|~\{")
"""ISO-2022 and HZ, which are ASCII to the eye."""
_WESTERN = re.compile(
    rb"(?<=[A-Za-z])[\xc0-\xd6\xd8-\xf6\xf8-\xff]+|[\xc0-\xd6\xd8-\xf6\xf8-\xff]+(?=[a-z])"
    rb"|[\x80\x82\x84\x85\x91-\x97\xa0\xa1\xa3\xa7\xa9-\xab\xad\xae\xb0-\xb2\xb4\xb7\xbb-\xbf]"
)
"""windows-1252 as Western texts use it: letters among ASCII letters, quotation marks, dashes, currencies, fractions."""
_CESU = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
"""A character beyond U+FFFF in UTF-8 of its two halves, as some databases export it."""
_ODD_SIGNS = frozenset("\u00b9\u00b2\u00b3\u00bc\u00bd\u00be\u00a4\u00a6\u00a8\u00b8\u00af")
"""Signs that stand in no word."""
_ODD = 0.05
"""Share of characters beyond ASCII that are odd where they stand from which on another encoding is looked for."""
_ASCII_RUN = re.compile(rb"[\x00-\x7f]{200,}")
_HIGH = bytes(range(128, 256))
_IN_A_WORD = re.compile(rb"(?<=[A-Za-z])[\x80-\xff]|[\x80-\xff](?=[a-z])")
_STRANGE = re.compile(rb"[\x1b\x80-\xff]")
_FEW = 8
"""Bytes beyond ASCII from which no encoding can be told."""


def decode(data: bytes, *, tell: Tell, declared: str | None = None, encoding: str | None = None) -> str:
    """Text of a file, by byte order mark, UTF-8, `encoding`, `declared` or its own declaration, and detection, in that
    order. Single bytes that fit none of it become "?", and `tell` hears of these and of a guess.

    declared: what the format says of this file. encoding: what the user says. Raises Refused for binary data.
    """
    for bom, marked in _BOMS:
        if data.startswith(bom):
            return _lenient(data, marked, tell)
    declared = declared or declaration(data)
    if b"\xed" in data:
        data = _CESU.sub(lambda match: match[0].decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
                         .decode("utf-16").encode(), data)  # fmt: skip
    if b"\0" in data[:SAMPLE] and (wide := _wide(data)):
        return _lenient(data, wide, tell)
    _check_is_text(data)
    if not data.isascii():
        text, good, bad = _as_utf8(data)
        said = encoding or _codec(declared)
        if not bad and (_is_surely_utf8(data, good) or not said):
            return text
        if bad and good >= bad * (8 if said not in (None, "utf-8") else 1):
            _tell_replaced(bad, "utf-8", tell)
            return text
        if bad and b"\0" in data:
            raise Refused("binary data")
    elif b"+" in data and _codec(declared) == "utf-7":
        return _lenient(data, "utf-7", tell)
    elif not _STATEFUL.search(data):
        return data.decode("ascii")
    if encoding:
        return _lenient(data, encoding, tell)
    if (name := _codec(declared)) and name not in ("utf-8", "utf-16-le", "utf-16-be", "utf-32"):
        return _lenient(data, name, tell)
    if data.isascii() and b"\x1b" not in data:
        return data.decode("ascii")
    return _detected(data, tell)


def declaration(data: bytes) -> str | None:
    """The encoding that a file of text names itself, as PEP 263, editors, XML, CSS and TeX do; None without one."""
    for pattern in _DECLARED:
        if match := pattern.search(data[:4096]):
            name = next(group for group in match.groups() if group).decode("ascii", "replace")
            return _TEX.get(name, name)
    return None


def _codec(label: str | None) -> str | None:
    """Python's codec for a label: as browsers understand it, where they do. None for an unknown one."""
    import webencodings

    if not label:
        return None
    known = webencodings.lookup(label)
    if known and known.name == "x-user-defined":  # of pages that scripts read as bytes; else browsers take this
        return "cp1252"
    if known and known.name != "replacement":
        return str(known.codec_info.name)
    return codecs.lookup(label).name if is_text_encoding(label) else None


def _lenient(data: bytes, name: str, tell: Tell) -> str:
    """Decoded, single bytes that do not fit replaced; raises Refused where most do not."""
    text, bad = _replaced(data, name)
    shown = name.removesuffix("-sig")
    if 4 * bad > len(text):
        raise Refused(f"not valid {shown}")
    if bad:
        _tell_replaced(bad, shown, tell)
    return text


def _replaced(data: bytes, name: str) -> tuple[str, int]:
    """(text with "?" for bytes that do not fit, their number)."""
    bad = 0

    def replace(error: UnicodeError) -> tuple[str, int]:
        nonlocal bad
        assert isinstance(error, UnicodeDecodeError)
        bad += 1
        return "?", error.end

    try:
        return data.decode(name), 0
    except UnicodeDecodeError:
        codecs.register_error("sac-replace", replace)
        return data.decode(name, "sac-replace"), bad


def _as_utf8(data: bytes) -> tuple[str, int, int]:
    """(text, characters beyond ASCII, number of bytes that are no UTF-8); the text is empty where these are many."""
    plain = len(data.translate(None, _HIGH))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        bad = text.count("\ufffd") - data.count("\ufffd".encode())  # it may stand in the file itself
        good = len(text) - plain - bad
        return _replaced(data, "utf-8")[0] if bad <= max(good, _FEW) else "", good, bad
    return text, len(text) - plain, 0


def _is_surely_utf8(data: bytes, good: int) -> bool:
    """Valid UTF-8 that is no accident of another encoding: several characters, or one that Western texts use."""
    return good > 1 or bool(re.search(rb"[\xe0-\xf4][\x80-\xbf]{2}|[\xc2-\xc5][\x80-\xbf]", data))


def _wide(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, by their zero bytes, or by the words of one script that they make."""
    sample = data[:4096]
    sample = sample[: len(sample) // 4 * 4] if len(sample) > 8 else sample[: len(sample) // 2 * 2]
    for name, rest in (("utf-32-le", (1, 2, 3)), ("utf-32-be", (0, 1, 2))):
        quarters = [sample[i::4].count(0) for i in range(4)]
        if len(sample) > 8 and sum(quarters[i] for i in rest) > 2.4 * len(sample) / 4 and min(quarters) == 0:
            return name
    half = len(sample) // 2
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    for name, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if half >= 4 and zeros > 0.4 * half and others <= 0.02 * half:
            shown = sample[: 2 * half].decode(name, "replace")
            return name if sum(c.isprintable() or c.isspace() for c in shown) >= 0.98 * len(shown) else None
    return next((name for name in ("utf-16-le", "utf-16-be") if _is_one_script(sample.decode(name, "replace"))), None)


def _is_one_script(text: str) -> bool:
    """Whether a text is of words of one script with blanks between them, or of Chinese, Japanese or Korean, where other
    bytes would make letters of all scripts."""
    blocks = Counter(ord(c) >> 8 for c in text if c > "\xff")
    if not blocks or len(set(text)) <= 8:
        return False
    eastern = sum("\u3000" <= c <= "\u30ff" or "\u4e00" <= c <= "\u9fff" or "\uac00" <= c <= "\ud7a3" for c in text)
    low = sum((ord(c) & 0xFF) >= 0x80 for c in text)  # pairs of ASCII letters look like Chinese and have none
    stops = sum(c in "\u3001\u3002\uff0c\uff01\uff1f\u306e\u7684" for c in text) + text.count(" ")
    if eastern > 0.7 * len(text) and low > 0.25 * len(text) and stops > len(text) // 80:
        return sum(c < "\x80" or "\u2000" <= c <= "\u303f" or c >= "\uff00" for c in text) + eastern > 0.9 * len(text)
    return (
        max(blocks.values()) > 0.8 * blocks.total()
        and eastern == 0
        and sum(c.isalnum() for c in text) > 0.6 * len(text)
        and text.count(" ") > len(text) // 40
    )


def _guess(sample: bytes) -> tuple[str | None, float]:
    """(name of an encoding, 0..1): the likeliest in which words are of one script."""
    import chardet

    if not sample.isascii():  # markup says nothing
        sample = _ASCII_RUN.sub(lambda match: match[0][:60] + b"\n" + match[0][-60:], sample)
    eras = chardet.EncodingEra.ALL & ~chardet.EncodingEra.MAINFRAME
    found = [
        (entry["encoding"].lower(), entry["confidence"] or 0.0)
        for entry in chardet.detect_all(sample, encoding_era=eras, max_bytes=SAMPLE)
        if entry["encoding"]
    ]
    if not found:
        return None, 0.0
    fits = (entry for entry in found if sample.isascii() or _oddness(sample, entry[0]) < _ODD)
    return next(fits, found[0])


def _oddness(sample: bytes, name: str) -> float:
    """The share of characters beyond ASCII that are odd where they stand: none in this encoding, of another script than
    the letters beside them, signs within words, capitals behind small letters."""
    strange = _STRANGE.search(sample)
    start = max(0, strange.start() - 100) if strange else 0
    try:
        text = sample[start : start + 20_000].decode(name, "replace").removesuffix("\ufffd")
    except LookupError:
        return 1.0
    odd = high = 0
    for before, c, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        if c < "\x80":
            continue
        high += 1
        if c == "\ufffd" or (c < "\xa0" and c != "\x85"):
            odd += 1
        elif not c.isalpha():
            odd += before.isalpha() and after.isalpha() and c not in "\u2019\u00b7\u2010\u2013\u2014\u00ad"
            odd += c in _ODD_SIGNS and (before.isalpha() or after.isalpha())
        elif c >= "\u0370":
            odd += "a" <= before.lower() <= "z" and "a" <= after.lower() <= "z"
            odd += c < "\u1e00" and ("a" <= before.lower() <= "z" or "a" <= after.lower() <= "z")
        else:
            odd += before.islower() and c.isupper()
    return odd / max(high, 1)


def _check_is_text(data: bytes) -> None:
    head = data[:65536]
    if len(head) - len(head.translate(None, _CONTROLS)) > 8 + len(head) // 20:
        raise Refused("binary data")


def _detected(data: bytes, tell: Tell) -> str:
    """By what the bytes look like; a few that look like nothing are single bad ones of UTF-8."""
    strange = _STRANGE.search(data)  # it may come late
    start = max(0, strange.start() - SAMPLE // 2) if strange else 0
    sample = data[start : start + SAMPLE]
    high = len(sample) - len(sample.translate(None, _HIGH))
    western = sum(map(len, _WESTERN.findall(sample))) >= 0.8 * high
    name, sure = _guess(sample)
    if data.isascii():
        try:
            return data.decode(name or "ascii")
        except (LookupError, ValueError):
            return data.decode("ascii")
    if western and (high <= _FEW or sure < 0.1 or _codec(name) in ("iso8859-1", "iso8859-15", "cp1252")):
        if high <= _FEW or name is None or _oddness(sample, "windows-1252") < _ODD or _oddness(sample, name) >= _ODD:
            name = "windows-1252"
    elif (
        high <= min(_FEW, len(sample) // 4)
        and not western
        and (sure < 0.02 or 2 * len(_IN_A_WORD.findall(sample)) < high)
    ):
        text, _, bad = _as_utf8(data)
        _tell_replaced(bad, "utf-8", tell)
        return text
    if name is None or not is_text_encoding(name):
        raise Refused("not valid utf-8")
    text = _lenient(data, name, tell)
    tell(f"not utf-8, read as {name}")
    return text


def _tell_replaced(count: int, name: str, tell: Tell) -> None:
    tell(f"{count} byte{'s are' if count > 1 else ' is'} not valid {name} and replaced by ?")
