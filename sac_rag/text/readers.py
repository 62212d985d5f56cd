"""Files to documents. Formats that need a parser are read in a child process with limits; see `formats`."""

from __future__ import annotations

import codecs
import logging
import os
import re
import stat
from pathlib import Path

from sac_rag.config import ReadConfig
from sac_rag.errors import DocumentError
from sac_rag.records import Document
from sac_rag.text.cleaning import Refused, Shift, clean, composed, newlines, shifts_of
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Heading, Parsed, heading_paths
from sac_rag.text.formats import Format, format_of
from sac_rag.text.hyphens import joined
from sac_rag.text.isolation import ParserProcess
from sac_rag.text.outlines import markdown
from sac_rag.text.walk import os_reason

__all__ = ["ParserProcess", "read", "read_bytes"]

_log = logging.getLogger(__name__)

EMPTY, NO_TEXT = "empty file", "no text"
"""Reasons to skip a file that was read."""

_SOFT_BREAK = re.compile(r"(?<=[^\W\d_])\u00ad(?=\n[ \t]*[^\W\d_])")
_QUICK_CHARS = 200_000
"""Markdown up to this size is outlined here: at most a few seconds for the worst text of that size."""


def read(path: str | Path, *, config: ReadConfig | None = None, parser: ParserProcess | None = None) -> Document:
    """One file as a document; its uri is the path as given, posix style.

    For plain text, Markdown, reStructuredText and source code `text` is the file's own text, cleaned, with `shifts`
    that lead back into the file; for other formats it is the extracted one. meta["notices"] says what was lost or
    guessed. Without `parser` a child process is started when the format needs one, and ended.
    Raises DocumentError (path, reason) for every file that cannot be read; nothing else.
    """
    if parser is None:
        with ParserProcess(config) as own:
            return read(path, parser=own)
    path = Path(path)
    try:
        return _read(path, config or parser.config, parser)
    except Refused as refused:
        raise DocumentError(path.as_posix(), str(refused)) from None
    except OSError as error:
        raise DocumentError(path.as_posix(), os_reason(error)) from None
    except ValueError:  # a NUL or a lone surrogate in the name
        raise DocumentError(ascii(path.as_posix())[1:-1], "name is not valid unicode") from None


def read_bytes(name: str, data: bytes, *, config: ReadConfig | None = None) -> Document:
    """As `read`, of a file that came another way: its uri is `name`, whose ending says what it is."""
    with ParserProcess(config) as parser:
        try:
            if len(data) > parser.config.file_bytes:
                raise Refused(f"file over {parser.config.file_bytes} bytes")
            if not data:
                raise Refused(EMPTY)
            return _document(name, format_of(Path(name)), data, parser.config, parser)
        except Refused as refused:
            raise DocumentError(name, str(refused)) from None
        except ValueError:
            raise DocumentError(ascii(name)[1:-1], "name is not valid unicode") from None


def _read(path: Path, config: ReadConfig, parser: ParserProcess) -> Document:
    form = format_of(path)
    data = _bytes(path, config.file_bytes, known=form is not None)
    return _document(path.as_posix(), form, data, config, parser)


def _document(uri: str, form: Format | None, data: bytes, config: ReadConfig, parser: ParserProcess) -> Document:
    if form is None:
        raise Refused("unknown file type")
    uri.encode()
    shifts: tuple[Shift, ...] = ()
    if form.parser:
        parsed = parser.parse(form.parser, data)
    else:
        parsed, shifts = _own_text(uri, form, data, config, parser)
    if not parsed.text.strip():
        raise Refused(NO_TEXT)
    return Document(uri, parsed.text, form.media_type, heading_paths(parsed.headings), parsed.meta, shifts)


def _own_text(
    uri: str, form: Format, data: bytes, config: ReadConfig, parser: ParserProcess
) -> tuple[Parsed, tuple[Shift, ...]]:
    """(the file's text, cleaned, where its characters stand in the file)."""
    notices: list[str] = []
    decoded = newlines(decode(data, tell=notices.append, encoding=config.encoding))
    if len(decoded) > config.text_chars:
        raise Refused(f"text over {config.text_chars} characters")
    if form.wrapped:  # a soft hyphen at a line's end is seen; cleaning would leave two halves of a word
        decoded = _SOFT_BREAK.sub("-", decoded)
    text = clean(decoded)
    # Python's own utf-8 keeps the mark that utf-8-sig takes off, and positions count it.
    shifts = shifts_of("\ufeff" + decoded if data.startswith(codecs.BOM_UTF8) else decoded, text)
    if form.wrapped:
        text, joins = joined(text)
        shifts = composed(shifts, joins)
    return Parsed(text, _outline(uri, form, text, parser), {"notices": notices} if notices else {}), shifts


def _bytes(path: Path, limit: int, *, known: bool) -> bytes:
    # Without O_NONBLOCK opening a named pipe waits for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: opening a device can have effects
        raise Refused("is a folder" if path.is_dir() else "not a regular file")
    if not known:
        return b""
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Refused("not a regular file")
        data = file.read(limit + 1)
    if not data:
        raise Refused(EMPTY)
    if len(data) > limit:
        raise Refused(f"file over {limit} bytes")
    return data


def _outline(uri: str, form: Format, text: str, parser: ParserProcess) -> list[Heading]:
    """Headings of a text; the text is good without them, so a failure costs only them."""
    if form.outline is None:
        return []
    if form.outline == "markdown" and len(text) <= _QUICK_CHARS:
        return markdown(text)
    try:
        return parser.parse(form.outline, text.encode()).headings
    except Refused as refused:
        _log.info("no headings in %s: %s", uri, refused)
        return []
