"""Reading and decoding behind memory: a batch of growing key/value caches, each row with its own positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Backbone, attend, spread
from sac_rag.errors import MemoryInvalid

Part: TypeAlias = Memory | Sequence[int]
"""A piece of a prompt, in reading order: token ids to read, or a memory that stands where its text would."""

SPARE = 64
"""Slots by which a full cache grows."""


class Session:
    """Rows of prompts under way. Each row may be read on, token by token or by whole parts, at any time.

    The cache is one tensor pair (layers, rows, kv_heads, capacity, head_dim), filled from the left in blocks that
    every row shares; a row's own slots stand at the right end of a block and the gaps before them are masked.
    Tokens of a prefill are packed without padding, so that rows of unlike length cost what they hold.

    logits: shape (rows, vocabulary), of the token that follows what has been read.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Sequence[Part]], *, use_lora: bool = False) -> None:
        self._backbone, self._use_lora = backbone, use_lora
        layers, groups, dim = backbone.kv_shape
        rows = len(prompts)
        self._keys = torch.empty(layers, rows, groups, 0, dim, dtype=backbone.dtype, device=backbone.device)
        self._values = torch.empty_like(self._keys)
        self._valid = torch.zeros(rows, 0, dtype=torch.bool, device=backbone.device)
        self._filled = 0
        self._next = [0] * rows
        self.logits = self.read(prompts)

    @property
    def rows(self) -> int:
        return len(self._next)

    @property
    def slots(self) -> int:
        """Slots that the rows hold, memory and tokens."""
        return int(self._valid.sum())

    @property
    def positions(self) -> list[int]:
        """Per row, the position of the next token."""
        return list(self._next)

    def read(self, parts: Sequence[Sequence[Part]]) -> torch.Tensor:
        """Read the parts of every row, each ending with at least one token, and return the next logits.

        Raises MemoryInvalid for a memory that was placed elsewhere than where it stands.
        """
        laid = [_lay_out(row, start) for row, start in zip(parts, self._next, strict=True)]
        width = max(row.slots for row in laid)
        block = self._open(width)
        rows = []
        for index, row in enumerate(laid):
            first = block + width - row.slots
            for at, m in row.memories:
                span = slice(first + at, first + at + m.slots)
                self._keys[:, index, :, span] = m.keys
                self._values[:, index, :, span] = m.values
            self._valid[index, first : block + width] = True
            rows.append(self._seen(index, row.places.to(self._valid.device) + first))
        ids = torch.tensor([t for row in parts for part in row if not isinstance(part, Memory) for t in part])
        positions = torch.cat([row.positions for row in laid])
        lengths = [row.places.numel() for row in laid]
        end = self._filled

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            pieces = zip(rows, q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
            for index, (seen, row_q, row_k, row_v) in enumerate(pieces):
                keys, values = self._keys[layer, index], self._values[layer, index]
                keys[:, seen.places] = row_k.transpose(0, 1)
                values[:, seen.places] = row_v.transpose(0, 1)
                keys, values = keys[:, seen.first : end], values[:, seen.first : end]
                out.append(attend(row_q, keys, values, mask=seen.mask, causal=seen.causal))
            return torch.cat(out)

        last = torch.tensor(lengths).cumsum(0) - 1
        self._next = (positions[last] + 1).tolist()
        self.logits = self._backbone.walk(ids, positions, mix, scored=last, use_lora=self._use_lora)
        return self.logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token per row, (rows,), and return the next logits."""
        at = self._open(1)
        self._valid[:, at] = True
        mask = None if bool(self._valid[:, : at + 1].all()) else self._valid[:, None, None, : at + 1]

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[:, :, at], values[:, :, at] = k, v
            rows, heads, dim = q.shape
            # The query heads that share a key head are its query rows: nothing is repeated.
            q = q.view(rows, keys.shape[1], -1, dim)
            out = F.scaled_dot_product_attention(q, keys[:, :, : at + 1], values[:, :, : at + 1], attn_mask=mask)
            return out.reshape(rows, heads * dim)

        positions = torch.tensor(self._next)
        self._next = [n + 1 for n in self._next]
        self.logits = self._backbone.walk(tokens, positions, mix, use_lora=self._use_lora)
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        at = torch.tensor(list(rows), device=self._keys.device)
        self._keys, self._values = self._keys[:, at], self._values[:, at]
        self._valid, self.logits = self._valid[at], self.logits[at]
        self._next = [self._next[r] for r in rows]

    def row(self, index: int) -> Session:
        """A session of one row, with a copy of its cache."""
        one = copy.copy(self)
        one.keep([index])
        return one

    def rewind(self, slots: int, position: int) -> None:
        """Forget all but the first `slots` slots of a session of one row; what is read next stands at `position`."""
        held = self._valid[0, : self._filled].nonzero()[:, 0]
        if self.rows != 1 or slots > held.numel():
            raise ValueError(f"cannot rewind {self.rows} rows of {held.numel()} slots to {slots}")
        self._filled = int(held[slots - 1]) + 1 if slots else 0
        self._valid[0, self._filled :] = False
        self._next = [position]

    def join(self, other: Session) -> None:
        """Take the rows of another session of the same backbone in behind one's own; `other` is spent."""
        if other._backbone is not self._backbone or other._use_lora != self._use_lora:
            raise ValueError("only sessions of one backbone, read with the same weights, can be joined")
        filled = max(self._filled, other._filled)
        both = [s._aligned(filled) for s in (self, other)]
        self._keys, self._values = (torch.cat([t[i] for t in both], dim=1) for i in (0, 1))
        self._valid = torch.cat([t[2] for t in both])
        self._filled = filled
        self._next += other._next
        self.logits = torch.cat((self.logits, other.logits))

    def _aligned(self, filled: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cache and mask, moved right until they end at `filled`."""
        gap, used = filled - self._filled, slice(0, self._filled)
        pad = (0, 0, gap, 0)
        keys, values = (F.pad(t[:, :, :, used], pad) for t in (self._keys, self._values))
        return keys, values, F.pad(self._valid[:, used], (gap, 0))

    def _open(self, width: int) -> int:
        """Make room for `width` more slots per row; returns the first."""
        start, self._filled = self._filled, self._filled + width
        if (short := self._filled - self._valid.shape[1]) > 0:
            pad = short + SPARE
            self._keys, self._values = (F.pad(t, (0, 0, 0, pad)) for t in (self._keys, self._values))
            self._valid = F.pad(self._valid, (0, pad))
        return start

    def _seen(self, index: int, places: torch.Tensor) -> _Seen:
        """What the tokens at these slots of a row attend."""
        valid = self._valid[index, : self._filled]
        first = int(valid.int().argmax())
        whole = bool(valid[first:].all())
        if whole and places.numel() in (1, self._filled - first):
            return _Seen(_slots(places), first, None, places.numel() > 1)
        slots = torch.arange(first, self._filled, device=places.device)
        seen = (slots <= places[:, None]) & valid[first:]
        config = self._backbone.config
        repeat = config.num_attention_heads // config.num_key_value_heads
        return _Seen(_slots(places), first, spread(seen, repeat, self._keys.dtype), False)


class _Laid(NamedTuple):
    """One row's parts in order: memories by their slot, tokens by slot and position."""

    memories: list[tuple[int, Memory]]
    places: torch.Tensor
    positions: torch.Tensor
    slots: int


class _Seen(NamedTuple):
    """Slots of a row's new tokens, the first slot that they attend, and which: a mask, all before them, or all."""

    places: slice | torch.Tensor
    first: int
    mask: torch.Tensor | None
    causal: bool


def _slots(places: torch.Tensor) -> slice | torch.Tensor:
    """Ascending slots; as a slice, which is faster, where they are neighbours."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == places.numel() else places


def _lay_out(parts: Sequence[Part], start: int) -> _Laid:
    memories: list[tuple[int, Memory]] = []
    places, positions = [], []
    at, position = 0, start
    for part in parts:
        if isinstance(part, Memory):
            if part.start != position:
                raise MemoryInvalid(f"a memory placed at position {part.start} stands at {position} of its prompt")
            memories.append((at, part))
            at, position = at + part.slots, part.next_position
        else:
            n = len(part)
            places.append(torch.arange(at, at + n))
            positions.append(torch.arange(position, position + n))
            at, position = at + n, position + n
    if not parts or isinstance(parts[-1], Memory) or not len(parts[-1]):
        raise MemoryInvalid("a prompt must end with at least one token: nothing follows from memory alone")
    return _Laid(memories, torch.cat(places), torch.cat(positions), at)
