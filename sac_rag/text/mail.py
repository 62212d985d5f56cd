"""Mail, web archives and rich text to text. Runs in the parser process."""

from __future__ import annotations

import re
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.encodings import decode
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.web import tree_of, write_html

MOST_MESSAGES = 50
"""Messages within each other that are read."""
_SHOWN = ("From", "To", "Cc", "Date")
_RTF_NOTE = re.compile(rb"\{\\footnote(?:\\ftnalt)?(?![a-z])\s*")
_RTF_HIDDEN = re.compile(rb"\{[^{}\\]*(?:\\(?!v\b)[a-z]+-?\d* ?)*\\v(?![a-z0-9])[^{}]*\}")


def eml(data: bytes, config: ReadConfig) -> Parsed:
    """Subject as heading, sender and date, the text, and the texts of attached messages; also web archives (mhtml).

    Attachments of other kinds are named in a notice.
    """
    out = Extract(config.text_chars)
    message = BytesParser(policy=policy.default).parsebytes(data)
    if not message.keys():
        raise Refused("damaged message")
    unread: list[str] = []
    assert isinstance(message, EmailMessage)
    _write(out, message, 1, unread, config)
    if unread:
        out.notices.append(f"{len(unread)} attachments not read: {', '.join(unread)}"[:300])
    return out.finish(title=short_title(clean(_header(message, "Subject"))))


def _write(out: Extract, message: EmailMessage, level: int, unread: list[str], config: ReadConfig) -> None:
    out.heading(min(level, 6), _header(message, "Subject"))
    out.add("\n".join(f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))), blank=True)
    out.gap()
    body = message.get_body(("plain", "html"))
    if body is not None:
        _write_part(out, body, config)
    for part in message.iter_attachments():
        if part.get_content_type() == "message/rfc822" and level < MOST_MESSAGES:
            inner = part.get_payload(0)
            assert isinstance(inner, EmailMessage)
            out.gap()
            _write(out, inner, level + 1, unread, config)
        elif part.get_content_maintype() == "text":
            out.add(part.get_filename() or "", blank=True)
            _write_part(out, part, config)
        elif part.get_content_disposition() == "attachment" or message.get_content_type() != "multipart/related":
            unread.append(part.get_filename() or part.get_content_type())


def _write_part(out: Extract, part: MIMEPart, config: ReadConfig) -> None:
    payload = part.get_payload(decode=True)
    assert isinstance(payload, bytes)
    text = decode(payload, tell=out.notices.append, declared=part.get_content_charset(), encoding=config.encoding)
    if part.get_content_subtype() == "html":
        write_html(tree_of(text), out)
    else:
        out.add(text, blank=True)


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name) or "").split())
    except Exception:  # a broken header is no reason to lose the text
        return ""


def rtf(data: bytes, config: ReadConfig) -> Parsed:
    """Rich text, footnotes in place, hidden text left out."""
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise Refused("damaged rtf")
    out = Extract(config.text_chars)
    source = _RTF_HIDDEN.sub(b"", _RTF_NOTE.sub(b"{ ", data)).decode("latin-1")
    out.add(rtf_to_text(source, errors="replace"))
    return out.finish()
