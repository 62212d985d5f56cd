"""Tags: a passage's memory named in plain text, so that it travels through prompt templates, histories and chains.

`[[sac:1:ID:MAC]]`, where MAC is an HMAC of the id under a key of the library. Text that merely looks like a tag, a
tag of another library and a tag of a passage that is gone stay what they are: text.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass

_TAG = re.compile(r"\[\[sac:1:([0-9a-f]{32}):([0-9a-f]{32})\]\]")
_MAC_BYTES = 16


@dataclass(frozen=True)
class PassageRef:
    """A passage's memory, standing in a message where its text would."""

    id: str


class Tagger:
    """Writes and reads the tags of one library. key: secret bytes that only holders of the library have."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def tag(self, passage_id: str) -> str:
        """The tag of a passage; ValueError for what is no passage id."""
        tag = f"[[sac:1:{passage_id}:{self._mac(passage_id)}]]"
        if not _TAG.fullmatch(tag):
            raise ValueError(f"{passage_id!r} is no passage id (32 hex digits)")
        return tag

    def split(self, text: str, known: Callable[[str], bool]) -> list[str | PassageRef]:
        """Text cut at its genuine tags; `known` says whether a passage may be read here."""
        parts: list[str | PassageRef] = []
        at = 0
        for match in _TAG.finditer(text):
            passage_id, mac = match.groups()
            if not hmac.compare_digest(mac, self._mac(passage_id)) or not known(passage_id):
                continue
            parts += [text[at : match.start()], PassageRef(passage_id)]
            at = match.end()
        return [p for p in (*parts, text[at:]) if p]

    def _mac(self, passage_id: str) -> str:
        return hmac.new(self._key, passage_id.encode(), hashlib.sha256).digest()[:_MAC_BYTES].hex()


def text_digest(text: str) -> str:
    """What a formatter compares to see whether a document's text is still the passage's own."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
