"""Passages that were handed out as text, to be known again where that text stands in a prompt."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

OFFERED = 1024
"""Texts known; beyond, the longest unused are forgotten and then read as text."""
_SHORT = 32
"""Characters below which a text counts only where it is a line or lines of its own."""

_PROBE = (24, 32)
"""Characters, at least and at most, by which the beginning of a text is known."""
_LOOKED_AT = 512
_FORMED = re.compile(r'["\\\s]{2,}|["\\\r\n\t]')
"""What JSON, indenting and joined lines write otherwise."""


class Offered:
    """text -> its tag. A text is known only as a whole, letter by letter. Safe to share between threads.

    `Offered.of(library)` is one for all who have opened a library in this process.
    """

    _shared: ClassVar[WeakValueDictionary[bytes, Offered]] = WeakValueDictionary()
    _sharing = threading.Lock()

    @classmethod
    def of(cls, secret: bytes) -> Offered:
        """secret: of the library, whose tags these are."""
        with cls._sharing:
            return cls._shared.setdefault(secret, cls())

    def __init__(self, limit: int = OFFERED) -> None:
        self.limit = limit
        self._tags: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, text: str, tag: str) -> None:
        if not (text := text.strip()):
            return
        with self._lock:
            self._tags[text] = tag
            self._tags.move_to_end(text)
            while len(self._tags) > self.limit:
                self._tags.popitem(last=False)

    def put_in(self, prompt: str, readable: Callable[[str], bool]) -> str:
        """The prompt with tags in place of the texts whose tags are `readable`; longer texts go first."""
        with self._lock:
            found = sorted(((t, tag) for t, tag in self._tags.items() if t in prompt), key=lambda p: -len(p[0]))
        pieces: list[tuple[str, bool]] = [(prompt, False)]
        for text, tag in found:
            if not readable(tag):
                continue
            pieces = [part for piece, done in pieces for part in ([(piece, True)] if done else _cut(piece, text, tag))]
        return "".join(piece for piece, _ in pieces)

    def altered(self, texts: Sequence[str], readable: Callable[[str], bool]) -> int:
        """How many of the texts whose tags are `readable` stand in what a prompt says cut off or in another form, as
        JSON or with other white space: their beginning does, and the whole does not."""
        texts = [text for text in texts if len(text) >= _PROBE[0]]
        with self._lock:
            known = list(self._tags.items()) if texts else []
        found, whole = set[str](), set[str]()
        for text, tag in known:
            if any(text in said for said in texts):
                whole.add(tag)
            elif (begins := _beginning(text)) and any(begins in said for said in texts):
                found.add(tag)
        return sum(map(readable, found - whole))


def _beginning(text: str) -> str:
    """The first words of a text that no form of it writes otherwise; empty where they are too few to know it by."""
    least, most = _PROBE
    parts = (part.strip() for part in _FORMED.split(text[:_LOOKED_AT]))
    return next((part[:most] for part in parts if len(part) >= least), "")


def _cut(piece: str, text: str, tag: str) -> list[tuple[str, bool]]:
    """A piece of a prompt cut where a text stands, and whether the parts are tags."""
    out: list[tuple[str, bool]] = []
    start = at = 0
    while (at := piece.find(text, at)) >= 0:
        end = at + len(text)
        if not _stands_alone(piece, at, end):
            at += 1
            continue
        out += [(piece[start:at], False), (tag, True)]
        start = at = end
    return [*out, (piece[start:], False)]


def _stands_alone(piece: str, start: int, end: int) -> bool:
    return end - start >= _SHORT or (
        piece[max(0, start - 1) : start] in ("", "\n") and piece[end : end + 1] in ("", "\n", "\r")
    )
