"""SAC: semantic-anchor compression (arXiv 2510.08907, section 3).

Tokens of the passage itself become anchors; a learned embedding marks them, a LoRA encoder with a
bidirectional mask fills their keys and values, and the frozen decoder attends those alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV, Slots
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.budgets import BUDGETS, Budget
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.announced import Announced
from sac_rag.compress.methods.base import BUDGET, SELECTOR, Chunk, PerChunk
from sac_rag.compress.selectors import SELECTORS, Selector, anchor_count
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError, MemoryInvalid


class Sac(Announced, PerChunk):
    """One anchor embedding for all ratios, so one adapter serves them all.

    selector: which tokens become anchors. budget: how many of them each head keeps. causal, mark_anchors: the ablations
    without the bidirectional mask and without the anchor embedding, which then stays zero (table 4). learn_prefix:
    train the keys and values of the layout's prefix, which start as the base model's own. sharpness: keys of a memory
    above 5x are (ratio / 5) ** sharpness times as long, so that what few anchors say is not drowned by the tokens
    around them; ours, not the paper's, and 0 leaves it out.

    Of the published code: anchor_rows: an anchor embedding for each place in a sub-context in place of the one, which
    start at N(0, 0.02); header, lm_token: as in `announced`.
    """

    name = "sac"
    SHARP_FROM = 5.0
    selector: Selector
    budget: Budget

    def __init__(
        self,
        backbone: Backbone,
        layout: PromptLayout,
        *,
        selector: str = "uniform",
        budget: str = "even",
        causal: bool = False,
        mark_anchors: bool = True,
        learn_prefix: bool = True,
        sharpness: float = 0.0,
        anchor_rows: bool = False,
        header: str = "",
        lm_token: bool = False,
    ) -> None:
        super().__init__(backbone, layout)
        if not 0 <= sharpness <= 1:
            raise ConfigError(f"sharpness is {sharpness:g}; it must be from 0 (off) to 1")
        self.sharpness = sharpness
        self.selector = SELECTORS.load(selector)(backbone)
        self.budget = BUDGETS.load(budget)(backbone)
        self.causal = causal
        start = torch.zeros(backbone.width, device=backbone.device)
        if anchor_rows:
            drawn = torch.randn(MAX_PASSAGE_TOKENS, backbone.width, generator=torch.Generator().manual_seed(0))
            start = 0.02 * drawn.to(backbone.device) * mark_anchors
        self.anchor_embedding = nn.Parameter(start, requires_grad=mark_anchors)
        self.announce(header, lm_token)
        self._prefix = _Prefix(backbone, layout) if layout.prefix else None
        if self._prefix:
            self._prefix.requires_grad_(learn_prefix)

    @property
    def prefix(self) -> AnchorKV | None:
        return self._prefix.kv() if self._prefix else None

    def identity(self) -> dict[str, Any]:
        """Selector and budget always, as all libraries name them; what the adapter's tensors tell, not at all."""
        found = {"selector": self.options["selector"], "budget": self.options["budget"], **super().identity()}
        return {
            name: value for name, value in found.items() if name not in ("mark_anchors", "learn_prefix", "anchor_rows")
        }

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        return self.closed(super().write(self.headed(contexts), ratios, future_bias=future_bias), behind=False)

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        if not all(chunks):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        inputs = [torch.tensor(c, dtype=torch.int64) for c in chunks]
        picks = [self.picks(c, r) for c, r in zip(chunks, ratios, strict=True)]
        one: torch.Tensor | None = self.anchor_embedding
        if self.anchor_embedding.ndim == 2:
            inputs, one = [self._marked(ids, p.anchors) for ids, p in zip(inputs, picks, strict=True)], None
        written = self.backbone.encode(inputs, picks, anchor_embedding=one, causal=self.causal, future_bias=future_bias)
        return [self._sharpened(kv, r) for kv, r in zip(written, ratios, strict=True)]

    def _marked(self, ids: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, width) with the rows of the anchors added."""
        rows = self.anchor_embedding[: len(anchors)].to(self.backbone.dtype)
        return self.backbone.embed(ids).index_add(0, anchors[: len(rows)].to(rows.device), rows)

    def _sharpened(self, kv: AnchorKV, ratio: float) -> AnchorKV:
        factor = max(1.0, ratio / self.SHARP_FROM) ** self.sharpness
        return kv if factor == 1 else dataclasses.replace(kv, keys=kv.keys * factor)

    def picks(self, token_ids: Sequence[int], ratio: float) -> Slots:
        """The tokens of a passage that each head keeps: of its budget, the best by the selector."""
        counts = self.budget(len(token_ids), anchor_count(len(token_ids), ratio))
        runs = counts.flatten().tolist()
        found = self.selector.at_ratio(token_ids, set(runs), ratio)
        return Slots.of([found[n] for n in runs], *counts.shape)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        found = {"anchor_embedding": self.anchor_embedding, **dict(self.backbone.trainable())}
        found |= {f"{SELECTOR}{n}": p for n, p in self.selector.named_parameters()}
        found |= {f"{BUDGET}{n}": p for n, p in self.budget.named_parameters()}
        if self.lm is not None:
            found["lm"] = self.lm
        if self._prefix:
            found |= {f"prefix.{n}": p for n, p in self._prefix.named_parameters()}
        return found


class _Prefix(nn.Module):
    """Keys and values of the prefix tokens, (layers, kv_heads, tokens, head_dim), fp32; exact KV of the base model
    until trained."""

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        super().__init__()
        ids = torch.tensor(backbone.template(layout.prefix))
        layers, heads, dim = backbone.kv_shape
        shape = (layers, heads, len(ids), dim)
        if backbone.starts:
            with torch.no_grad():
                (kv,) = backbone.encode([ids], [backbone.even(torch.arange(len(ids)))], causal=True, use_lora=False)
            start = kv.keys.float().view(shape), kv.values.float().view(shape)
        else:
            start = torch.empty(shape, device=backbone.device), torch.empty(shape, device=backbone.device)
        self.keys, self.values = map(nn.Parameter, start)

    def kv(self) -> AnchorKV:
        n = self.keys.shape[2]
        return AnchorKV.even(self.keys, self.values, torch.arange(n, device=self.keys.device), n)
