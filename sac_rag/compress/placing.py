"""Where stored memories stand in the decoder: placing, one rotation, concatenation.

Training, evaluation and serving all come through `compose`; it is differentiable in keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.rope import rotate
from sac_rag.errors import MemoryInvalid
from sac_rag.registry import Registry

PLACINGS = Registry(
    "placing",
    {"source": "sac_rag.compress.placing:source", "packed": "sac_rag.compress.placing:packed"},
)
"""Memories in order -> (the positions of each one's slots, the position of the text that follows)."""


def source(memories: Sequence[AnchorKV]) -> tuple[list[torch.Tensor], int]:
    """Each passage occupies its source length, one after the other (SAC, section 3.3)."""
    places, start = [], 0
    for m in memories:
        places.append(m.positions + start)
        start += m.source_len
    return places, start


def packed(memories: Sequence[AnchorKV]) -> tuple[list[torch.Tensor], int]:
    """Anchors at consecutive positions, as if they were the only tokens; where heads keep other ones, drawn together
    to as many positions as a head has slots on average."""
    places, start = [], 0
    for m in memories:
        anchors, rank = m.positions.unique(return_inverse=True)
        places.append(rank * m.anchors // anchors.numel() + start)
        start += m.anchors
    return places, start


def compose(
    memories: Sequence[AnchorKV],
    inv_freq: torch.Tensor,
    *,
    placing: str = "source",
    scaling: float = 1.0,
    start: int = 0,
    dtype: torch.dtype | None = None,
) -> Memory:
    """Place from position `start` on, rotate (once, in fp32) and join memories of equal (layers, kv_heads, head_dim).

    Raises MemoryInvalid when there is none or when their shapes differ.
    """
    if not memories:
        raise MemoryInvalid("nothing to compose: at least one memory is needed")
    shapes = {(*m.counts.shape, m.keys.shape[1]) for m in memories}
    if len(shapes) > 1:
        raise MemoryInvalid(f"memories of different models cannot be joined: (layers, kv_heads, head_dim) {shapes}")
    places, following = PLACINGS.load(placing)(memories)
    dtype = dtype or memories[0].keys.dtype
    keys = torch.cat([m.keys for m in memories])
    keys = rotate(keys, torch.cat(places) + start, inv_freq, scaling, dtype)
    values = torch.cat([m.values for m in memories]).to(dtype)
    if len(memories) > 1:
        order = _run_by_run([m.counts for m in memories]).to(keys.device)
        keys, values = keys.index_select(0, order), values.index_select(0, order)
    counts = torch.stack([m.counts for m in memories]).sum(0)
    return Memory(keys, values, counts, start + following, sum(m.source_len for m in memories), start)


def _run_by_run(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The order of slots, memory by memory, in which each run holds those of all memories, (slots,)."""
    sizes = torch.stack([c.flatten() for c in counts])
    starts = (sizes.flatten().cumsum(0) - sizes.flatten()).view(sizes.shape).T.flatten()
    sizes = sizes.T.flatten()
    ends = sizes.cumsum(0)
    return torch.repeat_interleave(starts - (ends - sizes), sizes) + torch.arange(int(ends[-1]))
