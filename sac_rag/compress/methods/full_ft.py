"""Full-FT: no compression, a LoRA of the same shape on the whole context (SAC, section 4.1). The ceiling.

The LoRA'd model's own keys and values of every token are the "memory", so questions of one context share its
reading, and training and evaluation run through the same code as the compressing methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk, PerChunk


class FullFt(PerChunk):
    """Ratio 1: every token is kept, the layout's prefix included; ratios are ignored."""

    name = "full-ft"
    carries = "text"
    adapts = "whole"
    reads_with_lora = True
    causal = True

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__(backbone, layout)
        self._front = backbone.template(layout.prefix)

    def ahead(self, *, layout: PromptLayout | None = None, start: int = 0, opens: bool = True) -> list[AnchorKV]:
        """Nothing: what it writes holds the prefix."""
        return []

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        ids = [torch.tensor([*self._front, *c]) for c in chunks]
        return self.backbone.encode(ids, [self.backbone.even(torch.arange(len(i))) for i in ids], causal=True)

    def pieces(self, token_ids: Chunk) -> list[Chunk]:
        """The whole context: every token of it sees all those before."""
        return [token_ids]

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.backbone.trainable())
