"""EPL: 500xCompressor with an enhanced position layout (arXiv 2409.14364): memory tokens stand among what they keep.

Slots are counted by length, as its paper does; its published code gives every sub-context the number of a full one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.appended import Appends
from sac_rag.compress.methods.base import Chunk, PerChunk


class Epl(Appends, PerChunk):
    """Memory tokens are spread over the positions of their chunk, `spread_evenly`; what is read behind it goes on at
    its source length."""

    name = "epl"

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        return self.closed(super().write(self.headed(contexts), ratios, future_bias=future_bias), behind=False)

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        counts = self.counts(chunks, ratios)
        positions = [
            torch.cat((torch.arange(len(c)), spread_evenly(len(c), n))) for c, n in zip(chunks, counts, strict=True)
        ]
        return self.kept(chunks, counts, {**self.behind(counts), "positions": positions})


def spread_evenly(length: int, count: int) -> torch.Tensor:
    """Positions (count,) of memory tokens within a chunk, from 0: round(linspace(1 + (r-1)/2, L - (r-1)/2, K)) - 1
    with r = L / K, halves to the even number. Exact in integers: the i-th is (K + (2i + 1) L) / 2K before rounding."""
    doubled = count + (2 * torch.arange(count) + 1) * length
    whole, rest = doubled // (2 * count), doubled % (2 * count)
    up = (rest > count) | ((rest == count) & (whole % 2 == 1))
    return whole + up.long() - 1
