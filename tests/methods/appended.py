"""A toy with learned memory tokens behind each chunk, whose keys and values are kept (as 500xCompressor)."""

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


class Appended(PerChunk):
    name = "appended"
    made_for = Placing(positions="packed")
    causal = True

    def __init__(self, backbone: Backbone, layout: PromptLayout, *, spread: float = 0.1) -> None:
        super().__init__(backbone, layout)
        start = torch.randn(510, backbone.width, generator=torch.Generator().manual_seed(0))
        self.tokens = nn.Parameter(spread * start)

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        counts = [anchor_count(len(c), r) for c, r in zip(chunks, ratios, strict=True)]
        written = self.backbone.encode(
            [torch.tensor(c) for c in chunks],
            [self.backbone.even(len(c) + torch.arange(n)) for c, n in zip(chunks, counts, strict=True)],
            appended=[self.tokens[:n] for n in counts],
            causal=True,
        )
        return [replace(kv, positions=kv.positions - kv.source_len) for kv in written]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"tokens": self.tokens, **dict(self.backbone.trainable())}
