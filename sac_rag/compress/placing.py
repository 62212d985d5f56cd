"""Where stored memories stand in the decoder: placing, one rotation, concatenation.

Training, evaluation and serving all come through `compose`; it is differentiable in keys and values. Which positions
memories take, in which order they stand and how much the lower ranked are held back is one policy, `Placing`, that
the adapter's card names.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from typing import Any, cast

import torch

from sac_rag.compress.anchor_kv import AnchorKV, Memory, StoredKV, decoders_of, run_by_run
from sac_rag.compress.rope import Rotation
from sac_rag.config import AskConfig
from sac_rag.errors import AdapterError, ConfigError, MemoryInvalid
from sac_rag.registry import Registry

PLACINGS = Registry(
    "placing",
    {"source": "sac_rag.compress.placing:source", "packed": "sac_rag.compress.placing:packed"},
)
"""Entries are instances of `Positions`."""


class Positions(ABC):
    """Which positions memories take up: one after the other, unless a subclass overrides `__call__`."""

    @abstractmethod
    def places(self, memory: AnchorKV) -> torch.Tensor:
        """Positions (slots,) of a memory that begins at 0."""

    @abstractmethod
    def extent(self, slots: int, source_len: int) -> int:
        """Positions that a memory of `slots` (in a head on average) and `source_len` tokens takes up."""

    def __call__(self, memories: Sequence[AnchorKV]) -> tuple[list[torch.Tensor], int]:
        """(the positions of each memory's slots, that of the text that follows, which is the sum of their extents)."""
        places, start = [], 0
        for m in memories:
            places.append(self.places(m) + start)
            start += self.extent(m.anchors, m.source_len)
        return places, start


class _Source(Positions):
    """Each passage occupies its source length (SAC, section 3.3)."""

    def places(self, memory: AnchorKV) -> torch.Tensor:
        return memory.positions

    def extent(self, slots: int, source_len: int) -> int:
        return source_len


class _Packed(Positions):
    """Anchors at consecutive positions, as if they were the only tokens; where heads keep other ones, drawn together
    to as many positions as a head has slots on average."""

    def places(self, memory: AnchorKV) -> torch.Tensor:
        anchors, rank = memory.positions.unique(return_inverse=True)
        return rank * memory.anchors // anchors.numel()

    def extent(self, slots: int, source_len: int) -> int:
        return slots


source, packed = _Source(), _Packed()

ORDERS = ("best-last", "best-first")


@dataclass(frozen=True)
class Placing:
    """How the memories of several passages stand before a decoder. Passages are ranked by retrieval, 0 the best."""

    positions: str = "source"
    """What positions they take, by registry name: "source" (their source length) or "packed" (their slots)."""
    order: str = "best-last"
    """"best-last": the best passage stands nearest the question; "best-first": farthest from it."""
    prior: float = 0.0
    """Added to the attention scores (before softmax, in nats) of a passage's slots: -prior * rank. A passage of rank r
    then weighs exp(-prior * r) as much as the best one at equal scores; 0 leaves every bit as it is."""

    def __post_init__(self) -> None:
        PLACINGS.load(self.positions)
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}; use {' or '.join(ORDERS)}")
        if not isinstance(self.prior, int | float) or not 0 <= self.prior < math.inf:
            raise ConfigError(f"prior is {self.prior!r}; it must be a number of at least 0 and finite")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], usual: Placing | None = None) -> Placing:
        """Read a card's policy; raises AdapterError on unknown fields and values. usual: has those it leaves out."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise AdapterError(f"placing has unknown fields {unknown}; known: {sorted(known)}")
        try:
            return replace(usual or cls(), **values)
        except (ConfigError, TypeError) as error:
            raise AdapterError(f"placing {dict(values)} cannot be used: {error}") from error

    def overridden(self, ask: AskConfig) -> Placing:
        """This policy, with what a question asks for in its place."""
        given = {"positions": ask.placing, "order": ask.order, "prior": ask.prior}
        return replace(self, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    def unusual(self) -> dict[str, Any]:
        """The fields in which it differs from the default policy, for what was stored before there was a choice."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Placing(), name)}

    def places(self, memories: Sequence[AnchorKV]) -> tuple[list[torch.Tensor], int]:
        """(positions (slots,) of each of the memories in reading order, the position of the text that follows)."""
        placed: tuple[list[torch.Tensor], int] = PLACINGS.load(self.positions)(memories)
        return placed

    def arranged(self, count: int, first: int = 0) -> tuple[list[int], list[float]]:
        """Passages `count`, best first, of ranks from `first` on: their indices in reading order, and the bias of
        each in that order."""
        order = list(range(count))
        if self.order == "best-last":
            order.reverse()
        return order, [-self.prior * (first + i) if self.prior else 0.0 for i in order]

    def extent(self, slots: int, source_len: int) -> int:
        """Positions that a memory of `slots` (in a head on average) and `source_len` tokens takes up."""
        taken: int = PLACINGS.load(self.positions).extent(slots, source_len)
        return taken

    def span(self, memories: Iterable[AnchorKV]) -> int:
        """Positions that memories take up together."""
        return sum(self.extent(m.anchors, m.source_len) for m in memories)


def compose(
    memories: Sequence[AnchorKV],
    inv_freq: torch.Tensor,
    *,
    placing: Placing | None = None,
    biases: Sequence[float] | None = None,
    scaling: float = 1.0,
    start: int = 0,
    dtype: torch.dtype | None = None,
) -> Memory:
    """Place from position `start` on, rotate (once, in fp32) and join memories of equal (layers, kv_heads, head_dim).

    placing: None is the default policy; order is that of `memories`. biases: one a memory, added to the attention
    scores of its slots, on top of the slots' own.
    Raises MemoryInvalid when there is none or when their shapes differ.
    """
    if not memories:
        raise MemoryInvalid("nothing to compose: at least one memory is needed")
    shapes = {(*m.counts.shape, m.head_dim) for m in memories}
    if len(shapes) > 1:
        raise MemoryInvalid(f"memories of different models cannot be joined: (layers, kv_heads, head_dim) {shapes}")
    places, following = (placing or Placing()).places(memories)
    order = run_by_run([m.counts for m in memories]).to(places[0].device) if len(memories) > 1 else None
    at = torch.cat(places) + start
    turned = Rotation(at if order is None else at.index_select(0, order), inv_freq, scaling)
    keys, values = _joined(memories, order, turned, dtype)
    bias = None
    if (biases and any(biases)) or any(m.bias is not None for m in memories):
        own = (m.positions.new_zeros(m.positions.shape) if m.bias is None else m.bias for m in memories)
        prior = biases or [0.0] * len(memories)
        bias = torch.cat([b.to(keys.device, torch.float32) + p for b, p in zip(own, prior, strict=True)])
        bias = bias if order is None else bias.index_select(0, order)
    counts = torch.stack([m.counts for m in memories]).sum(0)
    return Memory(keys, values, counts, start + following, sum(m.source_len for m in memories), start, bias)


def _joined(
    memories: Sequence[AnchorKV], order: torch.Tensor | None, turned: Rotation, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, turned, and values of memories, run by run as `order` has it. dtype: None is that of the keys.

    What is stored is decoded block by block straight to its place: whole copies on the way cost more than arithmetic.
    """
    groups = decoders_of(memories)
    learns = torch.is_grad_enabled() and any(memories[i].keys.requires_grad for i in groups.get(None, ()))
    if set(groups) == {None} or learns:
        both = (torch.cat([getattr(m, name) for m in memories]) for name in ("keys", "values"))
        keys, values = (t if order is None else t.index_select(0, order) for t in both)
        return turned(keys, dtype or keys.dtype), values.to(dtype or keys.dtype)
    starts = [0, *accumulate(len(m.positions) for m in memories)]
    size = (starts[-1], memories[0].head_dim)
    keys, values = (torch.empty(size, dtype=dtype or torch.float32) for _ in range(2))
    stands = None
    if order is not None and len(groups) > 1:
        stands = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    for decoder, at in groups.items():
        own, places = [memories[i] for i in at], None
        if stands is not None:
            inner = run_by_run([m.counts for m in own])
            places = torch.cat([stands[starts[i] : starts[i + 1]] for i in at]).index_select(0, inner)

        def take(which: int, rows: slice, block: torch.Tensor, places: torch.Tensor | None = places) -> None:
            here = rows if places is None else places[rows]
            made = block.to(values.dtype) if which else turned(block, keys.dtype, here)
            held = values if which else keys
            if isinstance(here, slice):
                held[here] = made
            else:
                held.index_copy_(0, here, made)

        if decoder is None:  # beside others, hence `inner`
            for which, name in enumerate(("keys", "values")):
                take(which, slice(len(inner)), torch.cat([getattr(m, name) for m in own]).index_select(0, inner))
        else:
            decoder.decode_runs(cast(Sequence[StoredKV], own), take)
    return keys, values
