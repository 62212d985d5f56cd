"""A toy that needs all chunks of a context: they share a budget, and each sees what the earlier ones kept (as Beacon
with the budget of DAST)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Chunk, Method
from sac_rag.compress.selectors import anchor_count, uniform


class Shared(Method):
    name = "shared"

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        return [self._context(chunks, ratio, future_bias) for chunks, ratio in zip(contexts, ratios, strict=True)]

    def _context(self, chunks: Sequence[Chunk], ratio: float, future_bias: float | None) -> list[AnchorKV]:
        total, kinds = anchor_count(sum(map(len, chunks)), ratio), [len(set(chunk)) for chunk in chunks]
        made: list[AnchorKV] = []
        for chunk, kind in zip(chunks, kinds, strict=True):
            count = min(len(chunk), max(1, round(total * kind / sum(kinds))))
            front = self.memory(made, opens=False) if made else None
            start = front.next_position if front else 0
            (kv,) = self.backbone.encode(
                [torch.tensor(chunk)],
                [self.backbone.even(uniform(len(chunk), count))],
                fronts=[front],
                positions=[start + torch.arange(len(chunk))],
                future_bias=future_bias,
            )
            made.append(replace(kv, positions=kv.positions - start))
        return made

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.backbone.trainable())
