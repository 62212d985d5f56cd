"""A toy that carries embeddings: last states of memory tokens, which the decoder reads as its inputs (as ICAE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk, PerChunk
from sac_rag.compress.placing import Placing
from sac_rag.compress.selectors import anchor_count


class States(PerChunk):
    name = "states"
    made_for = Placing(positions="packed")
    adapts = "whole"
    causal = True

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__(backbone, layout)
        start = torch.randn(510, backbone.width, generator=torch.Generator().manual_seed(0))
        self.tokens = nn.Parameter(0.1 * start)

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        lengths = [len(c) for c in chunks]
        counts = [anchor_count(n, r) for n, r in zip(lengths, ratios, strict=True)]
        states = self.backbone.hidden(
            [torch.tensor(c) for c in chunks],
            [n + torch.arange(k) for n, k in zip(lengths, counts, strict=True)],
            appended=[self.tokens[:k] for k in counts],
            causal=True,
        )
        every = [self.backbone.even(torch.arange(k)) for k in counts]
        read = self.backbone.encode(states, every, causal=True, use_lora=False)
        return [replace(kv, source_len=n) for kv, n in zip(read, lengths, strict=True)]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"tokens": self.tokens, **dict(self.backbone.trainable())}
