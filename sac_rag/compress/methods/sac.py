"""SAC: semantic-anchor compression (arXiv 2510.08907, section 3).

Tokens of the passage itself become anchors; a learned embedding marks them, a LoRA encoder with a
bidirectional mask fills their keys and values, and the frozen decoder attends those alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import SELECTOR, Method
from sac_rag.compress.selectors import SELECTORS, Selector, anchor_count
from sac_rag.errors import MemoryInvalid


class Sac(Method):
    """One anchor embedding for all ratios, so one adapter serves them all.

    selector: which tokens become anchors. causal, mark_anchors: the ablations without the bidirectional mask and
    without the anchor embedding, which then stays zero (table 4). learn_prefix: train the keys and values of the
    layout's prefix, which start as the base model's own.
    """

    name = "sac"

    def __init__(
        self,
        backbone: Backbone,
        layout: PromptLayout,
        *,
        selector: str = "uniform",
        causal: bool = False,
        mark_anchors: bool = True,
        learn_prefix: bool = True,
    ) -> None:
        super().__init__(backbone, layout)
        self.selector: Selector = SELECTORS.load(selector)(backbone)
        self.causal = causal
        zeros = torch.zeros(backbone.width, device=backbone.device)
        self.anchor_embedding = nn.Parameter(zeros, requires_grad=mark_anchors)
        self._prefix = _Prefix(backbone, layout) if layout.prefix else None
        if self._prefix:
            self._prefix.requires_grad_(learn_prefix)

    @property
    def prefix(self) -> AnchorKV | None:
        return self._prefix.kv() if self._prefix else None

    def write(
        self, chunks: Sequence[Sequence[int]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        if not all(chunks):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        ids = [torch.tensor(c, dtype=torch.int64) for c in chunks]
        picks = [self.selector(c, anchor_count(len(c), r)) for c, r in zip(chunks, ratios, strict=True)]
        return self.backbone.encode(
            ids, picks, anchor_embedding=self.anchor_embedding, causal=self.causal, future_bias=future_bias
        )

    def parameters(self) -> Mapping[str, nn.Parameter]:
        found = {"anchor_embedding": self.anchor_embedding, **dict(self.backbone.trainable())}
        found |= {f"{SELECTOR}{n}": p for n, p in self.selector.named_parameters()}
        if self._prefix:
            found |= {f"prefix.{n}": p for n, p in self._prefix.named_parameters()}
        return found


class _Prefix(nn.Module):
    """Keys and values of the prefix tokens, fp32; exact KV of the base model until trained."""

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__()
        ids = torch.tensor(backbone.template(layout.prefix))
        with torch.no_grad():
            (kv,) = backbone.encode([ids], [torch.arange(len(ids))], causal=True, use_lora=False)
        self.keys = nn.Parameter(kv.keys.float())
        self.values = nn.Parameter(kv.values.float())

    def kv(self) -> AnchorKV:
        n = self.keys.shape[2]
        return AnchorKV(self.keys, self.values, torch.arange(n, device=self.keys.device), n)
