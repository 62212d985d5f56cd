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

BLOCK = 64
"""Attention sees whole blocks of slots, those without content masked: kernels then sum a row in the same order
whatever stands beside it, and an answer depends neither on what is answered at the same time nor on how much of its
prompt was read before."""


class Session:
    """Rows of prompts under way. Each row may be read on, token by token or by whole parts, at any time.

    The cache is one tensor pair (layers, rows, kv_heads, capacity, head_dim), every row filled from the left.
    Tokens of a prefill are packed without padding, so that rows of unlike length cost what they hold.

    logits: shape (rows, vocabulary), of the token that follows what has been read.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Sequence[Part]], *, use_lora: bool = False) -> None:
        self._backbone, self._use_lora = backbone, use_lora
        layers, groups, dim = backbone.kv_shape
        self._repeat = backbone.config.num_attention_heads // groups
        rows = len(prompts)
        self._keys = torch.empty(layers, rows, groups, 0, dim, dtype=backbone.dtype, device=backbone.device)
        self._values = torch.empty_like(self._keys)
        self._filled = [0] * rows
        self._next = [0] * rows
        self.logits = self.read(prompts)

    @property
    def rows(self) -> int:
        return len(self._next)

    @property
    def slots(self) -> int:
        """Slots that the rows hold, memory and tokens."""
        return sum(self._filled)

    @property
    def positions(self) -> list[int]:
        """Per row, the position of the next token."""
        return list(self._next)

    def read(self, parts: Sequence[Sequence[Part]]) -> torch.Tensor:
        """Read the parts of every row, each ending with at least one token, and return the next logits.

        Raises MemoryInvalid for a memory that was placed elsewhere than where it stands.
        """
        laid = [_lay_out(row, start) for row, start in zip(parts, self._next, strict=True)]
        starts = self._open([row.slots for row in laid])
        rows = []
        for index, (row, first) in enumerate(zip(laid, starts, strict=True)):
            for at, m in row.memories:
                span = slice(first + at, first + at + m.slots)
                self._keys[:, index, :, span] = m.keys
                self._values[:, index, :, span] = m.values
            rows.append(self._seen(row.places.to(self._keys.device) + first, self._filled[index]))
        ids = torch.tensor([t for row in parts for part in row if not isinstance(part, Memory) for t in part])
        positions = torch.cat([row.positions for row in laid])
        lengths = [row.places.numel() for row in laid]

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            out = []
            pieces = zip(rows, q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
            for index, (seen, row_q, row_k, row_v) in enumerate(pieces):
                keys, values = self._keys[layer, index], self._values[layer, index]
                keys[:, seen.places] = row_k.transpose(0, 1)
                values[:, seen.places] = row_v.transpose(0, 1)
                keys, values = keys[:, : seen.width], values[:, : seen.width]
                out.append(attend(row_q, keys, values, mask=seen.mask, causal=seen.mask is None))
            return torch.cat(out)

        last = torch.tensor(lengths).cumsum(0) - 1
        self._next = (positions[last] + 1).tolist()
        self.logits = self._backbone.walk(ids, positions, mix, scored=last, use_lora=self._use_lora)
        return self.logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token per row, (rows,), and return the next logits."""
        device = self._keys.device
        at = torch.tensor(self._open([1] * self.rows), device=device)
        each = torch.arange(self.rows, device=device)
        width = _blocks(max(self._filled))
        seen = torch.arange(width, device=device) <= at[:, None]
        mask = torch.stack([spread(row, self._repeat, self._keys.dtype) for row in seen.split(1)])[:, None]

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._keys[layer], self._values[layer]
            keys[each, :, at], values[each, :, at] = k, v
            rows, heads, dim = q.shape
            # The query heads that share a key head are its query rows: nothing is repeated.
            q = F.pad(q.view(rows, keys.shape[1], -1, dim), (0, 0, 0, mask.shape[2] - self._repeat))
            pieces = [(q, keys[:, :, :width], values[:, :, :width], mask)]
            if device.type == "cpu":
                # Row by row: which thread takes a row moves its last bits, and the time is that of the weights.
                pieces = list(zip(*(t.split(1) for t in pieces[0]), strict=True))
            out = [F.scaled_dot_product_attention(a, b, c, attn_mask=seen) for a, b, c, seen in pieces]
            return torch.cat(out)[:, :, : self._repeat].reshape(rows, heads * dim)

        positions = torch.tensor(self._next)
        self._next = [n + 1 for n in self._next]
        self.logits = self._backbone.walk(tokens, positions, mix, use_lora=self._use_lora)
        return self.logits

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        at = torch.tensor(list(rows), device=self._keys.device)
        self._keys, self._values, self.logits = self._keys[:, at], self._values[:, at], self.logits[at]
        self._filled, self._next = [self._filled[r] for r in rows], [self._next[r] for r in rows]

    def row(self, index: int) -> Session:
        """A session of one row, with a copy of its cache."""
        one = copy.copy(self)
        one.keep([index])
        return one

    def rewind(self, slots: int, position: int) -> None:
        """Forget all but the first `slots` slots of a session of one row; what is read next stands at `position`."""
        if self.rows != 1 or slots > self.slots:
            raise ValueError(f"cannot rewind {self.rows} rows of {self.slots} slots to {slots}")
        self._filled, self._next = [slots], [position]

    def join(self, other: Session) -> None:
        """Take the rows of another session of the same backbone in behind one's own; `other` is spent."""
        if other._backbone is not self._backbone or other._use_lora != self._use_lora:
            raise ValueError("only sessions of one backbone, read with the same weights, can be joined")
        capacity = max(self._keys.shape[3], other._keys.shape[3])
        self._keys, self._values = (
            torch.cat([F.pad(t, (0, 0, 0, capacity - t.shape[3])) for t in pair], dim=1)
            for pair in ((self._keys, other._keys), (self._values, other._values))
        )
        self._filled, self._next = self._filled + other._filled, self._next + other._next
        self.logits = torch.cat((self.logits, other.logits))

    def _open(self, widths: Sequence[int]) -> list[int]:
        """Make room for so many more slots in each row; returns the first of each."""
        starts, self._filled = self._filled, [n + w for n, w in zip(self._filled, widths, strict=True)]
        held = self._keys.shape[3]
        if max(self._filled) > held:
            capacity = _blocks(max(self._filled)) + (BLOCK if held else 0)
            self._keys, self._values = (self._grown(t, capacity, starts) for t in (self._keys, self._values))
        return starts

    def _grown(self, cache: torch.Tensor, capacity: int, starts: Sequence[int]) -> torch.Tensor:
        """A cache of more slots. What a mask will hide is set to zero: not even a masked NaN may be seen."""
        grown = cache.new_empty((*cache.shape[:3], capacity, cache.shape[4]))
        held = max(starts)
        grown[:, :, :, :held] = cache[:, :, :, :held]
        for row, end in enumerate(self._filled):
            grown[:, row, :, end:] = 0
        return grown

    def _seen(self, places: torch.Tensor, end: int) -> _Seen:
        """What the tokens at these slots of a row, filled up to `end`, attend."""
        width = _blocks(end)
        if places.numel() == end:
            return _Seen(slice(0, end), width, None)
        seen = torch.arange(width, device=places.device) <= places[:, None]
        return _Seen(_slots(places), width, spread(seen, self._repeat, self._keys.dtype))


def _blocks(slots: int) -> int:
    """Slots of the whole blocks that hold so many."""
    return -(-slots // BLOCK) * BLOCK


class _Laid(NamedTuple):
    """One row's parts in order: memories by their slot, tokens by slot and position."""

    memories: list[tuple[int, Memory]]
    places: torch.Tensor
    positions: torch.Tensor
    slots: int


class _Seen(NamedTuple):
    """Slots of a row's new tokens, and the leading slots that they attend: by a mask, or (None) those up to itself."""

    places: slice | torch.Tensor
    width: int
    mask: torch.Tensor | None


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
