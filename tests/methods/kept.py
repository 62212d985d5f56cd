"""A toy that carries text: the rarest tokens of a context, by their ids, and no others (as LLMLingua-2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.text import KeepsText
from sac_rag.compress.selectors import anchor_count


class Kept(KeepsText):
    name = "kept"

    def keep(self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float]) -> list[list[torch.Tensor]]:
        return [
            [
                torch.tensor(sorted(sorted(range(len(c)), key=lambda i: -c[i])[: anchor_count(len(c), ratio)]))
                for c in chunks
            ]
            for chunks, ratio in zip(contexts, ratios, strict=True)
        ]
