"""Mail and web archives to text. Runs in the parser process."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser
from itertools import pairwise

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean, newlines
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, TooLong, short_title
from sac_rag.text.parts import Parts
from sac_rag.text.web import tree_of, write_html

MOST_MESSAGES = 50
"""Messages within each other that are read."""
STUB = 4
"""Share of the other alternatives' text, as its inverse, under which plain text stands for something else: "Your
program shows no HTML"."""
_SHOWN = ("From", "To", "Cc", "Date")
_WIDE_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MAILBOX_LINE = re.compile(rb"(?:\A|(?<=\n\n)|(?<=\n\r\n))From [^\r\n]*\r?\n(?=>?[\w-]+:)")
_QUOTED_FROM = re.compile(rb"^(>*)>From ", re.MULTILINE)
_FLOWED = re.compile(r"^(?!>|-- \n)([^\n]+) \n(?![ >\n]|-- ?\n|From )", re.MULTILINE)
"""The end of a line that goes on in the next one (RFC 3676)."""


def eml(data: bytes, config: ReadConfig) -> Parsed:
    """Subject as heading, sender and date, the text, and the texts of attached messages; also web archives (mhtml) and
    mailboxes of several messages (mbox).

    Attachments of other kinds are named in a notice.
    """
    out = Extract(config.text_chars)
    if data.startswith(_WIDE_BOMS):
        data = decode(data, tell=out.notices.append).encode()
    writer = _Writer(out, config)
    parts = Parts(out, "messages", "damaged message")
    title = ""
    for part in _messages(data):
        with parts.one():
            message = BytesParser(policy=policy.default).parsebytes(part)
            assert isinstance(message, EmailMessage)
            if not message.keys():
                raise Refused("damaged message")
            out.gap()
            writer.message(message, 1)
            title = title or _header(message, "Subject")
    parts.tell()
    if writer.unread:
        out.notices.append(f"{len(writer.unread)} attachments not read: {', '.join(writer.unread)}"[:300])
    return out.finish(title=short_title(clean(title)))


def _messages(data: bytes) -> list[bytes]:
    """The messages of a mailbox, or the one that a file is."""
    data = data.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
    if not data.startswith(b"From "):
        return [data]
    starts = [match.start() for match in _MAILBOX_LINE.finditer(data)]
    if starts and starts[0]:  # a first message without headers
        starts.insert(0, 0)
    parts = (data[start:end] for start, end in pairwise([*starts, len(data)]))
    return [_QUOTED_FROM.sub(rb"\1From ", part) for part in parts] or [data]


class _Writer:
    def __init__(self, out: Extract, config: ReadConfig) -> None:
        self.out, self.config = out, config
        self.unread: list[str] = []
        """Names of attachments, or their types."""

    def message(self, message: Message, level: int) -> None:
        out = self.out
        out.heading(min(level, 6), _header(message, "Subject"))
        out.add("\n".join(f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))), blank=True)
        out.gap()
        self._part(message, level, "")

    def _part(self, part: Message, level: int, within: str) -> None:
        """A part by its type; `within`: the type of the part around it."""
        kind = part.get_content_type()
        inner = _parts(part)
        if kind == "message/rfc822" and inner:
            self.out.gap()
            if level < MOST_MESSAGES:
                self.message(inner[0], level + 1)
        elif kind == "multipart/alternative" and inner:
            self._part(self._best(inner), level, kind)
        elif inner:
            for item in inner:
                self._part(item, level, kind)
        elif part.get_content_maintype() in ("text", "multipart"):  # without a boundary a multipart is text
            self._text(part)
        elif part.get_content_disposition() == "attachment" or within != "multipart/related":
            self.unread.append(_name(part) or kind)

    def _text(self, part: Message) -> None:
        name = _name(part) if part.get_content_disposition() == "attachment" else ""
        try:
            text = self._decoded(part)
        except TooLong:
            raise
        except Refused:
            self.unread.append(_name(part) or part.get_content_type())
            return
        self.out.add(name, blank=True)
        if part.get_content_subtype() == "html":
            write_html(tree_of(text), self.out)
        elif part.get_content_subtype() not in ("css", "javascript"):
            self.out.add(text, blank=True)

    def _best(self, choices: list[Message]) -> Message:
        """Of alternatives plain text, unless it is empty or a stub of what the others say."""
        sizes = [sum(map(len, self._words(choice))) for choice in choices]
        full = max(sizes)
        for kind in ("text/plain", ""):
            for choice, size in zip(choices, sizes, strict=True):
                if choice.get_content_type().startswith(kind) and STUB * size >= full:
                    return choice
        return choices[0]

    def _words(self, part: Message) -> Iterator[str]:
        """Of the texts in a part."""
        for leaf in part.walk():
            if leaf.get_content_type() in ("text/plain", "text/html"):
                try:
                    text = self._decoded(leaf, told=False)
                except Refused:
                    continue
                if leaf.get_content_subtype() == "html":
                    page = Extract(self.config.text_chars)
                    write_html(tree_of(text), page)
                    text = page.finish().text
                yield from text.split()

    def _decoded(self, part: Message, told: bool = True) -> str:
        payload = part.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else str(part.get_payload()).encode("ascii", "surrogateescape")
        tell = self.out.notices.append if told else _ignored
        text = decode(data, tell=tell, declared=part.get_content_charset(), encoding=self.config.encoding)
        if str(part.get_param("format", "")).lower() != "flowed":
            return text
        joint = "" if str(part.get_param("delsp", "")).lower() == "yes" else " "
        return _FLOWED.sub(rf"\1{joint}", newlines(text))


def _ignored(notice: str) -> None:
    """Hears of what is looked at and may not be read."""


def _parts(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [item for item in payload if isinstance(item, Message)] if isinstance(payload, list) else []


def _name(part: Message) -> str:
    try:
        return " ".join((part.get_filename() or "").split())
    except Exception:  # a broken header is no reason to lose the text
        return ""


def _header(message: Message, name: str) -> str:
    try:
        raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")
        if re.search("[\udc80-\udcff]", raw):  # bytes beyond ASCII, which no standard allows
            return " ".join(decode(raw.encode("utf-8", "surrogateescape"), tell=_ignored).split())
        return " ".join(str(message.get(name) or "").split())
    except Exception:  # as above
        return ""
