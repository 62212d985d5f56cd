"""Passages that were handed out as text, to be known again where that text stands in a prompt."""

from __future__ import annotations

import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar
from weakref import WeakValueDictionary

OFFERED_CHARS = 32_000_000
"""Characters of all texts known, of about thirty thousand passages; beyond, the longest unused are forgotten."""
FORGOTTEN = 100_000
"""Texts of which only the beginning is kept once they are forgotten, so that reading them as text is told."""
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

    def __init__(self, limit: int = OFFERED_CHARS) -> None:
        self.limit = limit
        self._chars = 0
        self._tags: OrderedDict[str, str] = OrderedDict()
        self._forgotten: OrderedDict[str, str] = OrderedDict()
        """Beginning of a text -> its tag."""
        self._whole, self._begun = _Starts(), _Starts()
        self._lock = threading.Lock()

    def note(self, text: str, tag: str) -> None:
        if not (text := text.strip()):
            return
        with self._lock:
            if text not in self._tags:
                self._chars += len(text)
                self._whole.add(text, text)
                self._begun.add(_beginning(text), text)
            self._tags[text] = tag
            self._tags.move_to_end(text)
            self._forgotten.pop(_beginning(text), None)
            while self._chars > self.limit and len(self._tags) > 1:
                self._forget()

    def _forget(self) -> None:
        text, tag = self._tags.popitem(last=False)
        begins = _beginning(text)
        self._chars -= len(text)
        self._whole.remove(text, text)
        self._begun.remove(begins, text)
        if begins:
            self._forgotten[begins] = tag
            while len(self._forgotten) > FORGOTTEN:
                self._forgotten.popitem(last=False)

    def put_in(self, prompt: str, readable: Callable[[str], bool]) -> str:
        """The prompt with tags in place of the texts whose tags are `readable`; longer texts go first."""
        with self._lock:
            found = [(text, self._tags[text]) for text in self._whole.standing_in(prompt)]
        pieces: list[tuple[str, bool]] = [(prompt, False)]
        for text, tag in sorted(found, key=lambda pair: -len(pair[0])):
            if not readable(tag):
                continue
            pieces = [part for piece, done in pieces for part in ([(piece, True)] if done else _cut(piece, text, tag))]
        return "".join(piece for piece, _ in pieces)

    def altered(self, texts: Sequence[str], readable: Callable[[str], bool]) -> int:
        """How many of the texts whose tags are `readable` stand in what a prompt says and are not known whole: cut off,
        in another form, as JSON or with other white space, or forgotten. Their beginning is there."""
        texts = [text for text in texts if len(text) >= _PROBE[0]]
        with self._lock:
            whole = {text for said in texts for text in self._whole.standing_in(said)}
            found = {self._tags[text] for said in texts for text in self._begun.standing_in(said)}
            begun = {begins for said in texts for begins in self._forgotten_in(said)} - set(map(_beginning, whole))
            found |= {self._forgotten[begins] for begins in begun}
            found -= {self._tags[text] for text in whole}
        return sum(map(readable, found))

    def _forgotten_in(self, said: str) -> Iterator[str]:
        """Beginnings of forgotten texts that stand here."""
        for length in range(_PROBE[0], _PROBE[1] + 1) if self._forgotten else ():
            for at in range(len(said) - length + 1):
                if (begins := said[at : at + length]) in self._forgotten:
                    yield begins


class _Starts:
    """Texts by the words that they are known by, found where these stand without a look at each text."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[tuple[str, str], None]] = {}
        """First characters, up to the least of a probe -> (words, text)."""
        self._lengths: Counter[int] = Counter()

    def add(self, words: str, text: str) -> None:
        if words:
            head = words[: _PROBE[0]]
            if head not in self._texts:
                self._lengths[len(head)] += 1
            self._texts.setdefault(head, {})[words, text] = None

    def remove(self, words: str, text: str) -> None:
        head = words[: _PROBE[0]]
        if head not in self._texts:
            return
        self._texts[head].pop((words, text), None)
        if not self._texts[head]:
            del self._texts[head]
            self._lengths[len(head)] -= 1
            self._lengths += Counter()  # without zeros

    def standing_in(self, said: str) -> set[str]:
        """Texts whose words stand in `said`."""
        return set(self._found(said))

    def _found(self, said: str) -> Iterator[str]:
        for length in self._lengths:
            for at in range(len(said) - length + 1):
                for words, text in self._texts.get(said[at : at + length], ()):
                    if said.startswith(words, at):
                        yield text


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
