"""What the decoder reads: token ids, and memories where their passages' text would stand."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sac_rag.compress.anchor_kv import Memory
from sac_rag.records import Evidence


@dataclass(frozen=True)
class Recall:
    """A memory that is loaded only when it is read: a conversation that still holds it does not load it again.

    key: what the memory is (library, passages, placing); equal keys at equal positions are the same slots.
    start, next_position, slots: as in Memory, known without loading.
    """

    key: Hashable
    start: int
    next_position: int
    slots: int
    source_len: int
    load: Callable[[], Memory]


Piece: TypeAlias = Sequence[int] | Memory | Recall


@dataclass(frozen=True)
class Prompt:
    """Pieces in reading order; the last one is tokens."""

    parts: tuple[Piece, ...]
    notices: tuple[str, ...] = ()
    """What a user should know of how it was made."""
    texts: tuple[str, ...] = ()
    """Of the passages that its memories stand for, best first: what an answer is likely to quote."""
    evidence: tuple[Evidence, ...] = ()
    """Sentences of these passages that it reads as text, too."""

    @property
    def tokens(self) -> int:
        """Tokens to read."""
        return sum(len(p) for p in self.parts if not isinstance(p, Memory | Recall))

    @property
    def slots(self) -> int:
        """Memory slots to attend."""
        return sum(p.slots for p in self.parts if isinstance(p, Memory | Recall))

    @property
    def source_tokens(self) -> int:
        """Document tokens that the memories stand for."""
        return sum(p.source_len for p in self.parts if isinstance(p, Memory | Recall))

    def units(self) -> list[Hashable]:
        """Token ids and memories one by one: prompts that begin with the same units share that much cache."""
        out: list[Hashable] = []
        for part in self.parts:
            if isinstance(part, Recall):
                out.append(("memory", part.key, part.start))
            elif isinstance(part, Memory):
                out.append(("memory", object()))  # one that was handed over has no name to know it by
            else:
                out += part
        return out

    def after(self, units: int) -> list[Memory | Sequence[int]]:
        """What follows the first so many units, memories loaded."""
        rest: list[Memory | Sequence[int]] = []
        for part in self.parts:
            size = 1 if isinstance(part, Memory | Recall) else len(part)
            if units >= size:
                units -= size
            elif isinstance(part, Memory | Recall):
                rest.append(part.load() if isinstance(part, Recall) else part)
            else:
                rest.append(part[units:])
                units = 0
        return rest

    def recalls(self, units: int) -> list[Recall]:
        """The memories that `after` loads."""
        found = []
        for part in self.parts:
            if units <= 0 and isinstance(part, Recall):
                found.append(part)
            units -= 1 if isinstance(part, Memory | Recall) else len(part)
        return found

    def extent(self, units: int) -> tuple[int, int]:
        """(cache slots, position of the next token) after the first so many units."""
        slots = position = 0
        for part in self.parts:
            memory = isinstance(part, Memory | Recall)
            size = 1 if memory else len(part)  # type: ignore[arg-type]
            if units <= 0:
                break
            if isinstance(part, Memory | Recall):
                slots, position = slots + part.slots, part.next_position
            else:
                slots, position = slots + min(units, size), position + min(units, size)
            units -= size
        return slots, position
