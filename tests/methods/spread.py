"""A toy whose memory tokens have positions of their own, spread over the chunk that they stand for (as EPL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk, PerChunk
from sac_rag.compress.selectors import anchor_count, uniform


class Spread(PerChunk):
    name = "spread"

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__(backbone, layout)
        self.token = nn.Parameter(torch.full((backbone.width,), 0.1))

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        lengths = [len(c) for c in chunks]
        places = [uniform(n, anchor_count(n, r)) for n, r in zip(lengths, ratios, strict=True)]
        return self.backbone.encode(
            [torch.tensor(c) for c in chunks],
            [self.backbone.even(n + torch.arange(len(at))) for n, at in zip(lengths, places, strict=True)],
            appended=[self.token.expand(len(at), -1) for at in places],
            positions=[torch.cat((torch.arange(n), at)) for n, at in zip(lengths, places, strict=True)],
            future_bias=future_bias,
        )

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return {"token": self.token, **dict(self.backbone.trainable())}
