"""AnchorKV: the one currency between compressing, storing and answering."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sac_rag.errors import MemoryInvalid


@dataclass(frozen=True)
class AnchorKV:
    """The memory of one passage: what the frozen decoder attends instead of its text.

    keys, values: shape (layers, kv_heads, anchors, head_dim), same dtype. Keys are stored **before** RoPE,
    so that a passage can be placed anywhere by one rotation at load.
    positions: shape (anchors,), int64, ascending, 0 <= p < source_len: each anchor's index in its own passage.
    source_len: tokens of the passage. The text that follows continues at this position (SAC, section 3.3).
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    source_len: int

    @property
    def anchors(self) -> int:
        return self.positions.numel()

    @property
    def layers(self) -> int:
        return self.keys.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values as held in memory."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def realised_ratio(self) -> float:
        """Source tokens per anchor, L / |S|."""
        return self.source_len / self.anchors

    def spans(self) -> list[tuple[int, int]]:
        """The token span [start, end) that each anchor stands for: cut halfway between neighbours."""
        p = self.positions.tolist()
        cuts = [0, *((a + b + 1) // 2 for a, b in zip(p, p[1:], strict=False)), self.source_len]
        return list(zip(cuts, cuts[1:], strict=False))

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> AnchorKV:
        """A copy with keys and values in another dtype or on another device."""
        keys, values = self.keys.to(device=device, dtype=dtype), self.values.to(device=device, dtype=dtype)
        return AnchorKV(keys, values, self.positions.to(device=device), self.source_len)

    def validate(self) -> AnchorKV:
        """Return self, or raise MemoryInvalid naming what is wrong (shape, dtype, range, NaN, Inf)."""
        k, v, p = self.keys, self.values, self.positions
        if k.ndim != 4 or k.shape != v.shape:
            raise MemoryInvalid(f"keys {tuple(k.shape)} and values {tuple(v.shape)} must share one 4-D shape")
        if k.dtype != v.dtype or not k.dtype.is_floating_point:
            raise MemoryInvalid(f"keys ({k.dtype}) and values ({v.dtype}) must share one floating dtype")
        if p.shape != (k.shape[2],) or p.dtype != torch.int64:
            raise MemoryInvalid(f"positions {tuple(p.shape)} {p.dtype} do not fit {k.shape[2]} anchors (int64)")
        if not k.shape[2]:
            raise MemoryInvalid("a memory needs at least one anchor")
        if int(p[0]) < 0 or int(p[-1]) >= self.source_len or bool((p[1:] <= p[:-1]).any()):
            raise MemoryInvalid(f"positions must ascend within [0, {self.source_len}), got {p.tolist()[:8]}...")
        for name, t in (("keys", k), ("values", v)):
            # One NaN or Inf spoils the sum, which is one fast pass; only then is it worth looking at each.
            if not bool(torch.isfinite(t.sum())) and not bool(torch.isfinite(t).all()):
                raise MemoryInvalid(f"{name} hold NaN or Inf: the model or its dtype overflowed on this passage")
        return self


@dataclass(frozen=True)
class Memory:
    """One or more AnchorKV placed and joined: what a decoder attends before it reads the question.

    keys, values: shape (layers, kv_heads, slots, head_dim), keys rotated to their places.
    next_position: the position of the first token that follows.
    source_len: document tokens that the slots stand for.
    start: the position at which the memory begins: 0 unless something is read before it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    next_position: int
    source_len: int
    start: int = 0

    @property
    def slots(self) -> int:
        return self.keys.shape[2]
