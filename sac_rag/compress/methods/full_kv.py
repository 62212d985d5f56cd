"""Full KV: every token's keys and values, stored before RoPE and rotated to where they are placed.

This is what TurboRAG (arXiv 2410.07590) and KVLink (arXiv 2502.16002) store, here with the frozen model, and each
passage read behind the prompt's prefix: one passage is read exactly as its text would be.
"""

from __future__ import annotations

from collections.abc import Sequence

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.frozen import Frozen


class FullKv(Frozen):
    """No compression: the ceiling of all methods that keep some of a frozen model's keys and values."""

    name = "full-kv"
    only_ratio = 1.0

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        return self.prefilled(chunks)
