"""A toy without weights: the base model reads a chunk, and each head keeps the tokens with the smallest keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Chunk, PerChunk
from sac_rag.compress.selectors import anchor_count


class Evicted(PerChunk):
    name = "evicted"
    trains = False
    adapts = "nothing"
    causal = True

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        every = [self.backbone.even(torch.arange(len(c))) for c in chunks]
        whole = self.backbone.encode([torch.tensor(c) for c in chunks], every, causal=True, use_lora=False)
        out = []
        for kv, ratio in zip(whole, ratios, strict=True):
            runs, count = kv.counts.numel(), anchor_count(kv.source_len, ratio)
            sizes = kv.keys.norm(dim=1).view(runs, -1)
            kept = sizes.topk(count, largest=False).indices.sort(dim=1).values
            at = (kept + torch.arange(runs, device=kept.device)[:, None] * kv.source_len).flatten()
            counts = torch.full_like(kv.counts, count)
            out.append(AnchorKV(kv.keys[at], kv.values[at], kept.flatten(), counts, kv.source_len))
        return out
