"""Reading and decoding behind memory: a batch of growing key/value caches, each row with its own positions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import NamedTuple, TypeAlias, TypeVar

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.attention import TILE, Queries, spread
from sac_rag.compress.backbone import Backbone, Mix
from sac_rag.errors import MemoryInvalid

Part: TypeAlias = Memory | Sequence[int]
"""A piece of a prompt, in reading order: token ids to read, or a memory that stands where its text would."""

BLOCK = 64
"""Attention sees whole blocks of slots, those without content masked: kernels then sum a row in the same order
whatever stands beside it, and an answer depends neither on what is answered at the same time nor on how much of its
prompt was read before."""

BATCH_TOKENS = 16
"""Tokens that are read together where a token's products change with their number (`Backbone.is_batch_invariant`):
kernels choose another way to sum behind 16 of them, if they do."""

SLOTS_PER_CALL = 512
"""Slots that one token's attention passes over in the time that a call of its own takes."""

_Fill = TypeVar("_Fill", bound=Hashable)


class Session:
    """Rows of prompts under way. Each row may be read on, token by token or by whole parts, at any time.

    The cache is a tensor pair for each layer, (rows, kv_heads, capacity, head_dim). Every head of every row is filled
    from the left to a length of its own, and a layer's capacity is that of its fullest head: where no head keeps
    anything of a memory, the memory costs nothing.
    Tokens of a prefill are packed without padding, so that rows of unlike length cost what they hold.
    What biased memories add to attention scores is held beside the cache, (rows, kv_heads, capacity, 1) a layer, from
    the first such memory on.

    logits: shape (rows, vocabulary), of the token that follows what has been read.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Sequence[Part]], *, use_lora: bool = False) -> None:
        self._backbone, self._use_lora = backbone, use_lora
        layers, groups, dim = backbone.kv_shape
        self._repeat = backbone.config.num_attention_heads // groups
        rows = len(prompts)
        empty = torch.empty(rows, groups, 0, dim, dtype=backbone.dtype, device=backbone.device)
        self._cache = [(empty, empty)] * layers
        self._bias: list[torch.Tensor] | None = None
        self._filled = torch.zeros(rows, layers, groups, dtype=torch.int64)
        self._next = [0] * rows
        self._stands: list[tuple[_Placed, ...]] = [()] * rows
        self._steps: dict[range, _Steps] = {}
        self.logits = self.read(prompts)

    @property
    def rows(self) -> int:
        return len(self._next)

    @property
    def slots(self) -> int:
        """Slots that the rows hold, memory and tokens, in a head on average."""
        return round(int(self._filled.sum()) / math.prod(self._filled.shape[1:]))

    @property
    def held(self) -> int:
        """Slots that the caches take up, in a head on average: more than are filled, as a layer's heads are alike."""
        return round(sum(keys.shape[0] * keys.shape[2] for keys, _ in self._cache) / len(self._cache))

    @property
    def positions(self) -> list[int]:
        """Per row, the position of the next token."""
        return list(self._next)

    def read(self, parts: Sequence[Sequence[Part]]) -> torch.Tensor:
        """Read the parts of every row, each ending with at least one token, and return the next logits.

        Raises MemoryInvalid for a memory that was placed elsewhere than where it stands.
        """
        self.logits = self._read(parts)
        return self.logits

    def extend(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read a few tokens of every row, one at least, and return the logits behind each, (tokens, vocabulary), row by
        row: the bits that as many steps would give, as long as no row has more than `BATCH_TOKENS`."""
        logits = self._read([[row] for row in tokens], every=True)
        self.logits = logits[torch.tensor([len(row) for row in tokens]).cumsum(0) - 1]
        return logits

    def _read(self, parts: Sequence[Sequence[Part]], *, every: bool = False) -> torch.Tensor:
        """Logits behind the last token of each row, or behind every one."""
        self._steps = {}
        laid = [_prefill_of(row, start) for row, start in zip(parts, self._next, strict=True)]
        starts = [row.starts(filled) for row, filled in zip(laid, self._filled, strict=True)]
        self._reach(torch.stack([at[-1] + row.tokens[-1] for row, at in zip(laid, starts, strict=True)]))
        for index, (row, at) in enumerate(zip(laid, starts, strict=True)):
            for memory, first in zip(row.memories, at[1:], strict=True):
                self._insert(index, memory, first - memory.counts)
                stand = _Placed(memory.start, memory.next_position, memory.counts, memory.bias is not None)
                self._stands[index] += (stand,)
        like, capacities = self._cache[0][0], [keys.shape[2] for keys, _ in self._cache]
        new = [_NewTokens(row.tokens, at, self._repeat, capacities, like) for row, at in zip(laid, starts, strict=True)]
        ids = [torch.tensor([t for part in row if not isinstance(part, Memory) for t in part]) for row in parts]
        lengths = [row.positions.numel() for row in laid]

        def walk(rows: range) -> torch.Tensor:
            sizes = [lengths[i] for i in rows]

            def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                keys, values = self._cache[layer]
                pieces = zip(rows, q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
                biases = {i: self._bias_of(i, layer) for i in rows}
                return torch.cat(
                    [new[i].attend(layer, keys[i], values[i], q, k, v, biases[i]) for i, q, k, v in pieces]
                )

            positions = torch.cat([laid[i].positions for i in rows])
            scored = None if every else torch.tensor(sizes).cumsum(0) - 1
            together = torch.cat([ids[i] for i in rows])
            return self._backbone.walk(together, positions, mix, scored=scored, use_lora=self._use_lora)

        self._next = [int(row.positions[-1]) + 1 for row in laid]
        return self._in_batches(walk, lengths)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one more token per row, (rows,), and return the next logits."""
        filled, positions = self._filled, torch.tensor(self._next)
        self._reach(filled + 1)

        def walk(rows: range) -> torch.Tensor:
            at = slice(rows.start, rows.stop)
            steps = self._steps.get(rows)
            if steps is None:
                caches = [(keys[at], values[at]) for keys, values in self._cache]
                biases = None if self._bias is None else [bias[at] for bias in self._bias]
                steps = self._steps[rows] = _Steps(caches, biases, filled[at], self._repeat)
            return self._backbone.walk(tokens[at], positions[at], steps.mix_at(filled[at]), use_lora=self._use_lora)

        self._next = [n + 1 for n in self._next]
        self.logits = self._in_batches(walk, [1] * self.rows)
        return self.logits

    def _in_batches(self, walk: Callable[[range], torch.Tensor], tokens: Sequence[int]) -> torch.Tensor:
        """Logits of all rows, by `walk` over ranges of them: all at once, or as many as have `BATCH_TOKENS` in all
        where a token's bits change with their number. tokens: of each row."""
        if self._backbone.is_batch_invariant:
            return walk(range(self.rows))
        ranges, first = list[range](), 0
        for row in range(1, self.rows + 1):
            if row == self.rows or sum(tokens[first : row + 1]) > BATCH_TOKENS:
                ranges.append(range(first, row))
                first = row
        return torch.cat([walk(rows) for rows in ranges])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""
        self._steps = {}
        index = torch.tensor(list(rows))
        at = index.to(self.logits.device)
        self._cache = [(keys[at], values[at]) for keys, values in self._cache]
        self._bias = None if self._bias is None else [bias[at] for bias in self._bias]
        self._filled, self.logits = self._filled[index], self.logits[at]
        self._next, self._stands = [self._next[r] for r in rows], [self._stands[r] for r in rows]

    def row(self, index: int) -> Session:
        """A session of one row, with a copy of its cache, as long as it needs to be."""
        one = copy.copy(self)
        one.keep([index])
        widths = list(map(_blocks, one._filled[0].amax(1).tolist()))
        one._cache = [
            (keys[:, :, :n].clone(), values[:, :, :n].clone())
            for (keys, values), n in zip(one._cache, widths, strict=True)
        ]
        if one._bias is not None:
            biased = one._is_biased(0)
            one._bias = [b[:, :, :n].clone() for b, n in zip(one._bias, widths, strict=True)] if biased else None
        return one

    def rewind(self, positions: Sequence[int]) -> None:
        """Forget all that stands at a row's position or behind it.

        Raises ValueError for a position that a row has not reached or that lies inside a memory; then nothing is
        forgotten.
        """
        kept = []
        for position, end, stands in zip(positions, self._next, self._stands, strict=True):
            if not 0 <= position <= end:
                raise ValueError(f"cannot rewind a row that is read up to {end} to position {position}")
            kept.append(tuple(m for m in stands if m.start < position))
            if kept[-1] and kept[-1][-1].next_position > position:
                raise ValueError(f"cannot rewind to {position}, inside the memory that begins at {kept[-1][-1].start}")
        gone = [stands[len(stay) :] for stands, stay in zip(self._stands, kept, strict=True)]
        fewer = [
            end - position - sum(m.next_position - m.start for m in memories)
            for position, end, memories in zip(positions, self._next, gone, strict=True)
        ]
        self._filled = self._filled - torch.tensor(fewer)[:, None, None]
        for row, memories in enumerate(gone):
            self._filled[row] -= sum(m.counts for m in memories)
            for layer, bias in enumerate((self._bias or ()) if memories else ()):  # tokens may come to stand there
                bias[row, :, :, 0].masked_fill_(_from(self._filled[row, layer], bias.shape[2]).to(bias.device), 0)
        self._next, self._stands, self._steps = list(positions), kept, {}

    def join(self, other: Session) -> None:
        """Take the rows of another session of the same backbone in behind one's own; `other` is spent."""
        if other._backbone is not self._backbone or other._use_lora != self._use_lora:
            raise ValueError("only sessions of one backbone, read with the same weights, can be joined")
        self._steps = {}
        for layer, (mine, its) in enumerate(zip(self._cache, other._cache, strict=True)):
            capacity = max(mine[0].shape[2], its[0].shape[2])
            keys, values = (torch.cat([_grown(t, capacity) for t in pair]) for pair in zip(mine, its, strict=True))
            self._cache[layer] = keys, values
        if self._bias is not None or other._bias is not None:
            capacities = [keys.shape[2] for keys, _ in self._cache]
            both = zip(self._biases(len(self._next)), other._biases(len(other._next)), capacities, strict=True)
            self._bias = [torch.cat((_grown(a, n), _grown(b, n))) for a, b, n in both]
        self._filled = torch.cat((self._filled, other._filled))
        self._next, self._stands = self._next + other._next, self._stands + other._stands
        self.logits = torch.cat((self.logits, other.logits))

    def _reach(self, filled: torch.Tensor) -> None:
        """Make room for heads that are filled so far, (rows, layers, kv_heads)."""
        self._filled = filled
        for layer, most in enumerate(filled.amax((0, 2)).tolist()):
            held = self._cache[layer][0].shape[2]
            if most > held:
                self._steps = {}
                room = _blocks(most) + (BLOCK if held else 0)
                keys, values = (_grown(t, room) for t in self._cache[layer])
                self._cache[layer] = keys, values
                if self._bias is not None:
                    self._bias[layer] = _grown(self._bias[layer], room)

    def _insert(self, row: int, memory: Memory, starts: torch.Tensor) -> None:
        """Write a memory's runs from these slots on, (layers, kv_heads)."""
        for (keys, values), runs, firsts in zip(self._cache, memory.layer_runs(), starts.tolist(), strict=True):
            for head, ((run_keys, run_values), first) in enumerate(zip(runs, firsts, strict=True)):
                if count := len(run_keys):
                    keys[row, head, first : first + count] = run_keys
                    values[row, head, first : first + count] = run_values
        if (biases := memory.layer_biases()) is not None:
            self._bias = self._biases(self.rows)
            for held, layer, firsts in zip(self._bias, biases, starts.tolist(), strict=True):
                for head, (bias, first) in enumerate(zip(layer, firsts, strict=True)):
                    held[row, head, first : first + len(bias), 0] = bias.to(held.dtype)

    def _biases(self, rows: int) -> list[torch.Tensor]:
        """What is added to scores, layer by layer: zeros until there is something."""
        if self._bias is not None:
            return self._bias
        return [keys.new_zeros(rows, keys.shape[1], keys.shape[2], 1) for keys, _ in self._cache]

    def _is_biased(self, row: int) -> bool:
        return any(stand.biased for stand in self._stands[row])

    def _bias_of(self, row: int, layer: int) -> torch.Tensor | None:
        """What is added to the scores of a row's slots, (kv_heads, capacity); None: nothing."""
        return self._bias[layer][row, :, :, 0] if self._bias is not None and self._is_biased(row) else None


def _from(filled: torch.Tensor, capacity: int) -> torch.Tensor:
    """Slots behind those that heads are filled with, (kv_heads, capacity)."""
    return torch.arange(capacity) >= filled[:, None]


def _blocks(slots: int) -> int:
    """Slots of the whole blocks that hold so many."""
    return -(-slots // BLOCK) * BLOCK


def _grown(cache: torch.Tensor, capacity: int) -> torch.Tensor:
    """A cache of more slots. What a mask will hide is zero: not even a masked NaN may be seen."""
    return F.pad(cache, (0, 0, 0, capacity - cache.shape[2]))


class _Placed(NamedTuple):
    """Where a row has a memory: its positions, [start, next_position), its slots, (layers, kv_heads), and whether it
    adds to their scores."""

    start: int
    next_position: int
    counts: torch.Tensor
    biased: bool


class _Prefill(NamedTuple):
    """One row's parts in order: tokens in front of the first memory (0: none) and behind each, and their positions."""

    memories: list[Memory]
    tokens: list[int]
    positions: torch.Tensor

    def starts(self, filled: torch.Tensor) -> torch.Tensor:
        """The first slot of each stretch of tokens, (stretches, layers, kv_heads), in heads `filled` so far."""
        tokens = torch.tensor(self.tokens)
        ahead = (tokens.cumsum(0) - tokens)[:, None, None] + filled
        ahead[1:] += torch.stack([m.counts for m in self.memories]).cumsum(0) if self.memories else 0
        return ahead


def _prefill_of(parts: Sequence[Part], start: int) -> _Prefill:
    memories: list[Memory] = []
    tokens, positions, position = [0], [], start
    for part in parts:
        if isinstance(part, Memory):
            if part.start != position:
                raise MemoryInvalid(f"a memory placed at position {part.start} stands at {position} of its prompt")
            memories.append(part)
            tokens.append(0)
            position = part.next_position
        else:
            tokens[-1] += len(part)
            positions.append(torch.arange(position, position + len(part)))
            position += len(part)
    if not parts or isinstance(parts[-1], Memory) or not len(parts[-1]):
        raise MemoryInvalid("a prompt must end with at least one token: nothing follows from memory alone")
    return _Prefill(memories, tokens, torch.cat(positions))


class _NewTokens:
    """One row's new tokens on their way through the layers: `tokens` in each stretch between memories, which go to
    the slots from `starts` on, (stretches, layers, kv_heads), of caches of these capacities."""

    def __init__(
        self, tokens: Sequence[int], starts: torch.Tensor, repeat: int, capacities: Sequence[int], like: torch.Tensor
    ) -> None:
        ends = list(accumulate(tokens))
        stretches = [slice(end - n, end) for n, end in zip(tokens, ends, strict=True)]
        self._repeat, self._mask = repeat, _masks(stretches, repeat, like)
        each = starts.permute(1, 2, 0).tolist()
        self._layers = [
            [(heads, starts, starts[-1] + tokens[-1]) for heads, starts in _alike(map(tuple, of_layer))]
            for of_layer in each
        ]
        # Slots of a row's cache, (kv_heads * capacity), that tokens go to, head by head of each token.
        lines = torch.arange(starts.shape[2]) * torch.tensor(capacities)[:, None]
        first = starts + lines - torch.tensor([stretch.start for stretch in stretches])[:, None, None]
        places = first.repeat_interleave(torch.tensor(tokens), dim=0) + torch.arange(ends[-1])[:, None, None]
        self._places = places.transpose(0, 1).flatten(1).to(like.device).unbind(0)

    def attend(
        self,
        layer: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write k and v, (tokens, kv_heads, head_dim), to the row's cache, (kv_heads, capacity, head_dim), and attend
        it with q, (tokens, heads, head_dim) -> (tokens, heads * head_dim). bias: (kv_heads, capacity), added to the
        scores of its slots."""
        for held, new in ((keys, k), (values, v)):
            held.view(-1, held.shape[2]).index_copy_(0, self._places[layer], new.reshape(-1, held.shape[2]))
        queries = Queries(q, len(keys))
        # Heads that are filled alike go together, others apart: an empty one does not wade through the slots of a full
        # one, so that slots cost the same time however the heads share them.
        for heads, starts, end in self._layers[layer]:
            mask = None if end == len(q) else self._mask(starts)
            upto = slice(0, _blocks(end))
            if mask is not None and bias is not None:
                mask = mask + bias[heads, None, upto]
            queries.attend(heads, keys[heads, upto], values[heads, upto], mask=mask, causal=mask is None)
        return queries.attended()


class _Together(NamedTuple):
    """A row's neighbouring heads (all rows and heads where it is no CPU) that one call attends, the fullest of them
    filled so far."""

    rows: slice
    heads: slice
    filled: int


class _Steps:
    """How rows take steps until anything else happens to them: where each layer's next keys go, what hides slots, and
    which heads attend together. All that a step does not change is made once.

    caches and biases: of these rows, as `Session` holds them; filled: (rows, layers, kv_heads).
    """

    def __init__(
        self,
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
        biases: Sequence[torch.Tensor] | None,
        filled: torch.Tensor,
        repeat: int,
    ) -> None:
        rows, layers, groups = filled.shape
        like = caches[0][0]
        self._caches, self._repeat, self._device, self._done = caches, repeat, like.device, -1
        self._flat = [(keys.view(-1, keys.shape[3]), values.view(-1, keys.shape[3])) for keys, values in caches]
        capacities = torch.tensor([keys.shape[2] for keys, _ in caches])
        self._lines = torch.arange(rows * groups).view(rows, 1, groups) * capacities[:, None]
        sizes = rows * groups * capacities
        self._offsets = (sizes.cumsum(0) - sizes)[:, None]
        self._hidden = torch.full((int(sizes.sum()),), -torch.inf, dtype=like.dtype, device=like.device)
        self._masks = [part.view(rows, groups, 1, -1) for part in self._hidden.split(sizes.tolist())]
        for layer, (mask, of_layer) in enumerate(zip(self._masks, filled.unbind(1), strict=True)):
            seen = torch.arange(mask.shape[3]) < of_layer[..., None, None]
            mask.masked_fill_(seen.to(like.device), 0)
            if biases is not None:
                mask += biases[layer].transpose(2, 3)
        self._together = [_together(of_layer, like.device) for of_layer in filled.unbind(1)]
        self._views: list[tuple[int, list[tuple[torch.Tensor, ...]]]] = [(-1, [])] * layers

    def mix_at(self, filled: torch.Tensor) -> Mix:
        """The attention of one more token for each row, over caches that are filled so far, (rows, layers, kv_heads):
        those of the last step and its tokens."""
        self._done += 1
        places = self._lines + filled
        self._hidden.index_fill_(0, (places + self._offsets).flatten().to(self._device), 0)
        each_layer = places.transpose(0, 1).flatten(1).to(self._device).unbind(0)

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self._flat[layer]
            keys.index_copy_(0, each_layer[layer], k.reshape(-1, k.shape[2]))
            values.index_copy_(0, each_layer[layer], v.reshape(-1, v.shape[2]))
            rows, groups = len(q), k.shape[1]
            # The query heads that share a key head are its query rows: nothing is repeated.
            q = F.pad(q.view(rows, groups, -1, q.shape[2]), (0, 0, 0, -self._repeat % TILE))
            together, views = self._together[layer], self._seen(layer)
            if len(together) == 1:
                keys, values, mask = views[0]
                out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            else:
                out = torch.empty_like(q)
                for (at, heads, _), (keys, values, mask) in zip(together, views, strict=True):
                    out[at, heads] = F.scaled_dot_product_attention(q[at, heads], keys, values, attn_mask=mask)
            return out[:, :, : self._repeat].reshape(rows, -1)

        return mix

    def _seen(self, layer: int) -> list[tuple[torch.Tensor, ...]]:
        """Keys, values and mask of what attends together, whole blocks of slots: the same views for as many steps as
        a block has slots."""
        until, views = self._views[layer]
        if self._done > until:
            together = self._together[layer]
            widths = [_blocks(t.filled + 1 + self._done) for t in together]
            whole = (*self._caches[layer], self._masks[layer].transpose(2, 3))
            views = [
                tuple(held[t.rows, t.heads, :width] for held in whole)
                for t, width in zip(together, widths, strict=True)
            ]
            views = [(keys, values, mask.transpose(2, 3)) for keys, values, mask in views]
            until = min(width - t.filled - 1 for t, width in zip(together, widths, strict=True))
            self._views[layer] = until, views
        return views


def _together(filled: torch.Tensor, device: torch.device) -> list[_Together]:
    """What attends together of a layer whose heads are filled so far, (rows, kv_heads).

    On a CPU row by row: which thread takes a row moves its last bits, and a width that only another one needs may do so
    too. Apart too where heads need many more slots than others.
    """
    if device.type != "cpu":
        return [_Together(slice(0, filled.shape[0]), slice(0, filled.shape[1]), int(filled.max()))]
    return [
        _Together(slice(row, row + 1), heads, most)
        for row, fills in enumerate(filled.tolist())
        for heads, most in _near(fills)
    ]


def _alike(heads: Iterable[_Fill]) -> list[tuple[slice, _Fill]]:
    """Neighbouring heads that are filled alike, and how."""
    found, first = [], 0
    for fill, run in groupby(heads):
        end = first + len(list(run))
        found.append((slice(first, end), fill))
        first = end
    return found


def _near(fills: Sequence[int]) -> list[tuple[slice, int]]:
    """Neighbouring heads that go together, and how far the fullest is filled: one attention of a few slots too many
    takes less time than two."""
    found = [(slice(0, 1), fills[0])]
    for head, fill in enumerate(fills[1:], 1):
        heads, most = found[-1]
        widest, size = max(most, fill), head - heads.start
        if widest * (size + 1) - most * size - fill <= SLOTS_PER_CALL:
            found[-1] = (slice(heads.start, head + 1), widest)
        else:
            found.append((slice(head, head + 1), fill))
    return found


def _masks(stretches: Sequence[slice], repeat: int, like: torch.Tensor) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Masks of `spread` for the tokens of one row by the slots of its stretches. The last few made are held, since
    layers that are filled alike share them."""
    n = stretches[-1].stop

    @lru_cache(maxsize=1)
    def own() -> torch.Tensor:
        seen = torch.ones(n, n, dtype=torch.bool, device=like.device).tril()
        return spread(seen, repeat, like.dtype)

    @lru_cache(maxsize=4)
    def mask(starts: tuple[int, ...]) -> torch.Tensor:
        columns, at = [], 0
        for start, stretch in zip(starts, stretches, strict=True):
            # What lies in front of a stretch is seen as its first token is.
            columns += [own()[:, stretch.start, None].expand(-1, start - at), own()[:, stretch]]
            at = start + stretch.stop - stretch.start
        hidden = torch.full_like(own()[:, :1], -torch.inf)
        return torch.cat([*columns, hidden.expand(-1, _blocks(at) - at)], dim=1)

    return mask
