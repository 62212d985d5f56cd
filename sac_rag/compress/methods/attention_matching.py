"""Attention Matching (arXiv 2602.16284): a few keys with biases and values fitted to what all of them do. No training.

Of each head's keys the most attended stay. A bias on each, added to its attention scores, is fitted so that together
they draw as much attention as all did, and new values so that what comes of it is the same, for the queries of saying
the passage again. Both fits are least squares in closed form.

Ours, not the paper's: queries of the repetition alone, instead of those of a model that also asks and answers; and what
is fitted is held to the key's own value and to no bias by a ridge, which the paper leaves out, because a fit that hangs
on the last bits of a bf16 model is another one on the next machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.frozen import Frozen, best, kept
from sac_rag.compress.selectors import anchor_count
from sac_rag.errors import ConfigError

LARGEST_BIAS = 3.0
"""A slot stands for at most e^3 keys like it, and for no less than e^-3 of one (the paper's bounds)."""


class AttentionMatching(Frozen):
    """even_heads: every head keeps the same number, its own best; else heads compete. bias: whether slots have one.
    ridge: how much fits are held back, relative to the mean of the squares that they are fitted with."""

    name = "attention-matching"
    weighs = True

    def __init__(
        self,
        backbone: Backbone,
        layout: PromptLayout,
        *,
        even_heads: bool = True,
        bias: bool = True,
        ridge: float = 0.01,
    ) -> None:
        super().__init__(backbone, layout)
        if not 0 < ridge <= 1e6:
            raise ConfigError(f"ridge is {ridge:g}; it must be above 0, and at most 1e6")
        self._even, self._bias, self._ridge = even_heads, bias, ridge

    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        """Chunk by chunk: what is kept must not depend on how a batch rounds."""
        return [self._write(chunk, ratio) for chunk, ratio in zip(chunks, ratios, strict=True)]

    def _write(self, chunk: Chunk, ratio: float) -> AnchorKV:
        (whole,) = self.prefilled([chunk])
        count = anchor_count(len(chunk), ratio)
        if count == len(chunk):
            return whole
        queries, keys, values = self.attended(chunk, whole)
        attention = [(q @ k.transpose(1, 2) * k.shape[-1] ** -0.5) for q, k in zip(queries, keys, strict=True)]
        scores = torch.stack([a.softmax(-1).square().mean(1).sqrt() for a in attention])
        chosen = best(scores, count, even=self._even)
        memory = kept(whole, chosen)
        fitted = [
            self.fitted(attention[layer][head], values[layer][head], chosen[layer, head].nonzero()[:, 0])
            for layer in range(chosen.shape[0])
            for head in range(chosen.shape[1])
        ]
        matched = torch.cat([v for v, _ in fitted]).to(memory.values.dtype)
        return replace(memory, values=matched, bias=torch.cat([b for _, b in fitted]) if self._bias else None)

    def attended(
        self, chunk: Chunk, whole: AnchorKV
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Per layer the queries of saying a chunk again, (kv_heads, queries, head_dim), those of a group's heads one
        after the other, and the chunk's rotated keys and values, (kv_heads, tokens, head_dim); all fp32."""
        first, found = self.ahead_tokens, []

        def look(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            n, heads, dim = q.shape
            groups = k.shape[1]
            queries = q.view(n, groups, heads // groups, dim).permute(1, 2, 0, 3).flatten(1, 2).float()
            own = slice(first, first + len(chunk))
            found.append((queries, k[own].transpose(0, 1).float(), v[own].transpose(0, 1).float()))

        self.again(chunk, whole, look)
        queries, keys, values = (list(t) for t in zip(*found, strict=True))
        return queries, keys, values

    def fitted(
        self, attention: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(values (slots, head_dim), biases (slots,)) of the chosen keys of one head.

        attention: scores (queries, tokens) before softmax; values: (tokens, head_dim); chosen: (slots,) indices.
        """
        bias = attention.new_zeros(len(chosen))
        if not len(chosen):
            return values[chosen], bias
        mass = (attention - attention.amax(1, keepdim=True)).exp()
        if self._bias:
            ones = torch.ones(len(chosen), 1, device=attention.device)
            counts = self._solved(mass[:, chosen], mass.sum(1, keepdim=True), ones).squeeze(1)
            bias = counts.clamp(math.exp(-LARGEST_BIAS), math.exp(LARGEST_BIAS)).log()
            bias = bias.half().float()  # as it is stored
        weight = (attention[:, chosen] + bias).softmax(-1)
        wanted = mass / mass.sum(1, keepdim=True) @ values
        return self._solved(weight, wanted, values[chosen]), bias

    def _solved(self, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The z nearest to x z = y, held to `start`: least squares with a ridge on what z differs by from it."""
        gram, left = (x.T @ x).double(), (x.T @ (y - x @ start)).double()
        gram.diagonal().add_(self._ridge * gram.diagonal().mean().clamp(min=1e-12))
        return start + torch.cholesky_solve(left, torch.linalg.cholesky(gram)).float()
