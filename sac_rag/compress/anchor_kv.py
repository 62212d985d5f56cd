"""AnchorKV: the one currency between compressing, storing and answering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch

from sac_rag.errors import MemoryInvalid

MOST = 1e3
"""Largest magnitude of a slot's bias, in nats: beyond any attention score, and within every number type."""


@dataclass(frozen=True)
class Slots:
    """Which tokens of a passage are kept, by which heads.

    Every key/value head of every layer keeps a *run* of tokens. Runs follow one another, the heads of layer 0 first.
    positions: shape (slots,), int64, ascending within each run: indices of tokens in their passage.
    counts: shape (layers, kv_heads), int64, on the CPU: the length of each run, 0 where a head keeps nothing.
    """

    positions: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def even(cls, positions: torch.Tensor, layers: int, kv_heads: int) -> Slots:
        """The same tokens in every run, as in the paper."""
        return cls(positions.repeat(layers * kv_heads), torch.full((layers, kv_heads), positions.numel()))

    @classmethod
    def of(cls, runs: Sequence[torch.Tensor], layers: int, kv_heads: int) -> Slots:
        """Positions run by run, layers * kv_heads of them."""
        counts = torch.tensor([len(run) for run in runs]).view(layers, kv_heads)
        return cls(torch.cat(list(runs)), counts)

    @property
    def anchors(self) -> torch.Tensor:
        """The tokens that any head keeps, ascending."""
        return self.positions.unique()

    @property
    def mean(self) -> int:
        """Slots that a head has on average, at least 1."""
        return max(1, round(self.positions.numel() / self.counts.numel()))

    def validate(self, source_len: int) -> Slots:
        """Return self, or raise MemoryInvalid where these are no slots of a passage of `source_len` tokens."""
        p, n = self.positions, self.counts
        if n.ndim != 2 or n.dtype != torch.int64 or not n.numel() or int(n.min()) < 0 or int(n.sum()) != p.numel():
            raise MemoryInvalid(f"counts {tuple(n.shape)} {n.dtype} are no lengths of runs that hold {p.numel()} slots")
        if not p.numel():
            raise MemoryInvalid("a memory needs at least one anchor")
        runs = self.runs().to(p.device)
        falls = (p[1:] <= p[:-1]) & (runs[1:] == runs[:-1])
        if int(p.min()) < 0 or int(p.max()) >= source_len or bool(falls.any()):
            raise MemoryInvalid(f"positions must ascend within [0, {source_len}), got {p[:8].tolist()}...")
        return self

    def runs(self) -> torch.Tensor:
        """The run of each slot, (slots,)."""
        return torch.repeat_interleave(self.counts.flatten())


def check_bias(bias: torch.Tensor, slots: int) -> None:
    """Raises MemoryInvalid for what cannot be added to the attention scores of so many slots."""
    if bias.shape != (slots,) or not bias.dtype.is_floating_point or not bool((bias.abs() <= MOST).all()):
        raise MemoryInvalid(f"biases {tuple(bias.shape)} {bias.dtype} must be one a slot, of at most {MOST:g} nats")


@dataclass(frozen=True)
class AnchorKV:
    """The memory of one passage: what the frozen decoder attends instead of its text.

    keys, values: shape (slots, head_dim), same dtype, the runs of all heads one after the other as in `Slots`. Keys
    are stored **before** RoPE, so that a passage can be placed anywhere by one rotation at load.
    positions, counts: as in `Slots`, 0 <= p < source_len: each slot's index in its own passage.
    source_len: tokens of the passage. The text that follows continues at this position (SAC, section 3.3).
    bias: shape (slots,), fp32: added to the attention scores of each slot, for methods that let one slot weigh as much
    as several tokens; None is 0 everywhere.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor
    source_len: int
    bias: torch.Tensor | None = None
    decoder: ClassVar[Decoder | None] = None
    """What makes keys and values of a `StoredKV` that has none yet."""

    @classmethod
    def even(cls, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor, source_len: int) -> AnchorKV:
        """The same tokens in all heads: keys and values (layers, kv_heads, anchors, head_dim), positions (anchors,)."""
        slots = Slots.even(positions, *keys.shape[:2])
        return cls(keys.flatten(0, 2), values.flatten(0, 2), slots.positions, slots.counts, source_len)

    @property
    def slots(self) -> Slots:
        return Slots(self.positions, self.counts)

    @property
    def head_dim(self) -> int:
        return self.keys.shape[1]

    @property
    def anchors(self) -> int:
        """Slots that a head has on average, |S|: as many take up the memory and the time of one token's KV."""
        return self.slots.mean

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values as held in memory."""
        return self.keys.nbytes + self.values.nbytes

    def spans(self) -> list[tuple[int, int]]:
        """The token span [start, end) that each anchor stands for: cut halfway between neighbours."""
        p = self.slots.anchors.tolist()
        cuts = [0, *((a + b + 1) // 2 for a, b in zip(p, p[1:], strict=False)), self.source_len]
        return list(zip(cuts, cuts[1:], strict=False))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AnchorKV:
        """A copy with keys and values in another dtype or on another device."""
        keys, values = self.keys.to(device=device, dtype=dtype), self.values.to(device=device, dtype=dtype)
        bias = None if self.bias is None else self.bias.to(device=device)
        return AnchorKV(keys, values, self.positions.to(device=device), self.counts, self.source_len, bias)

    def validate(self) -> AnchorKV:
        """Return self, or raise MemoryInvalid naming what is wrong (shape, dtype, range, NaN, Inf)."""
        k, v, p = self.keys, self.values, self.positions
        if k.ndim != 2 or k.shape != v.shape:
            raise MemoryInvalid(f"keys {tuple(k.shape)} and values {tuple(v.shape)} must share one 2-D shape")
        if k.dtype != v.dtype or not k.dtype.is_floating_point:
            raise MemoryInvalid(f"keys ({k.dtype}) and values ({v.dtype}) must share one floating dtype")
        if p.shape != (k.shape[0],) or p.dtype != torch.int64:
            raise MemoryInvalid(f"positions {tuple(p.shape)} {p.dtype} do not fit {k.shape[0]} slots (int64)")
        self.slots.validate(self.source_len)
        if self.bias is not None:
            check_bias(self.bias, p.numel())
        for name, t in (("keys", k), ("values", v)):
            # One NaN or Inf spoils the sum, which is one fast pass; only then is it worth looking at each.
            if not bool(torch.isfinite(t.sum())) and not bool(torch.isfinite(t).all()):
                raise MemoryInvalid(f"{name} hold NaN or Inf: the model or its dtype overflowed on this passage")
        return self


Take = Callable[[int, slice, torch.Tensor], None]
"""Takes decoded rows: 0 for keys or 1 for values, which rows they are, and these, (rows, head_dim) float32, for now."""


class Decoder(Protocol):
    """Makes keys and values of what it stored."""

    def decode_runs(self, memories: Sequence[StoredKV], take: Take) -> None:
        """Decode the rows of several memories, run by run in the order of `run_by_run`, block after block."""
        ...


class StoredKV(AnchorKV):
    """A memory as it is stored, which is a fraction of its keys and values: these, float32, are made when they are
    looked at, or, of several memories that are placed together, straight to where they stand.

    Several threads may look at one at once: what was decoded is added to it in one step, and nothing is taken away.
    """

    stored: Any
    """What `decoder` decodes; kept afterwards, for who began to decode it before."""

    @classmethod
    def of(
        cls, decoder: Decoder, stored: Any, slots: Slots, head_dim: int, source_len: int, bias: torch.Tensor | None
    ) -> StoredKV:
        """The memory of these slots that `decoder` has as `stored`."""
        made = cls.__new__(cls)
        about = {"positions": slots.positions, "counts": slots.counts, "source_len": source_len, "bias": bias}
        made.__dict__.update(about, decoder=decoder, stored=stored, _head_dim=head_dim)
        return made

    @property
    def head_dim(self) -> int:
        return int(vars(self).get("_head_dim", 0)) or super().head_dim

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AnchorKV:
        """As of AnchorKV; what is decoded on the CPU in float32 and is to stay so is not decoded for it."""
        decoder, on_cpu = self.decoder, torch.device(device or "cpu").type == "cpu"
        if decoder is None or dtype not in (None, torch.float32) or not on_cpu:
            return super().to(dtype=dtype, device=device)
        return self.of(decoder, self.stored, self.slots, self.head_dim, self.source_len, self.bias)

    def __getattr__(self, name: str) -> torch.Tensor:
        decoder = self.decoder
        if name not in ("keys", "values") or (decoder is None and name not in vars(self)):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        if decoder is None:  # another thread has decoded it since
            return cast(torch.Tensor, vars(self)[name])
        both = torch.empty(2, len(self.positions), self.head_dim, dtype=torch.float32)

        def take(which: int, rows: slice, block: torch.Tensor) -> None:
            both[which, rows] = block

        decoder.decode_runs([self], take)
        self.__dict__.update(keys=both[0], values=both[1], decoder=None)
        return both[("keys", "values").index(name)]


def decoders_of(memories: Sequence[AnchorKV]) -> dict[Decoder | None, list[int]]:
    """Which memories each decoder decodes; None has those whose keys and values are there."""
    found: dict[Decoder | None, list[int]] = {}
    for i, memory in enumerate(memories):
        found.setdefault(memory.decoder, []).append(i)
    return found


@dataclass(frozen=True)
class Memory:
    """One or more AnchorKV placed and joined: what a decoder attends before it reads the question.

    keys, values: shape (slots, head_dim), run by run as in AnchorKV, keys rotated to their places.
    counts: shape (layers, kv_heads), int64, on the CPU: the length of each run.
    next_position: the position of the first token that follows.
    source_len: document tokens that the slots stand for.
    start: the position at which the memory begins: 0 unless something is read before it.
    bias: shape (slots,), fp32, run by run: added to the attention scores of each slot; None is 0 everywhere.
    """

    keys: torch.Tensor
    values: torch.Tensor
    counts: torch.Tensor
    next_position: int
    source_len: int
    start: int = 0
    bias: torch.Tensor | None = None

    @property
    def slots(self) -> int:
        """Slots that a head has on average."""
        return round(self.keys.shape[0] / self.counts.numel())

    def layer_runs(self) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Per layer and head its run: keys and values, each (count, head_dim)."""
        sizes = self.counts.flatten().tolist()
        runs = list(zip(self.keys.split(sizes), self.values.split(sizes), strict=True))
        heads = self.counts.shape[1]
        return [runs[i : i + heads] for i in range(0, len(runs), heads)]

    def layer_biases(self) -> list[list[torch.Tensor]] | None:
        """Per layer and head the biases of its run, each (count,); None without any."""
        if self.bias is None:
            return None
        runs, heads = self.bias.split(self.counts.flatten().tolist()), self.counts.shape[1]
        return [list(runs[i : i + heads]) for i in range(0, len(runs), heads)]


def run_by_run(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The order of slots, memory by memory, in which each run holds those of all memories, (slots,)."""
    sizes = torch.stack([c.flatten() for c in counts])
    starts = (sizes.flatten().cumsum(0) - sizes.flatten()).view(sizes.shape).T.flatten()
    sizes = sizes.T.flatten()
    ends = sizes.cumsum(0)
    return torch.repeat_interleave(starts - (ends - sizes), sizes) + torch.arange(int(ends[-1]))
