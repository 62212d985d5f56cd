"""500xCompressor (Li et al., arXiv 2408.03094) in the form that EPL and SAC compare: AE + LM, then questions.

The original is autoencoding alone, with r=64, alpha=32 and 500 tokens in 16, 4 or 1. Memory tokens stand behind each
sub-context; what is kept are their keys and values of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.appended import Appends
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.placing import Placing
from sac_rag.compress.rope import rotate
from sac_rag.compress.selectors import uniform


class FiveHundredX(Appends):
    """Default positions: each sub-context begins at 0 and its memory tokens stand at L ... L + K - 1, where their keys
    stay; what is read behind them begins at the number of slots of the context.

    So a query stands before keys that it reads, which is what EPL mends. Keys are handed over turned ahead by
    L less the slots of the sub-contexts before: placed one after the other ("packed"), they stand where they stood.
    """

    name = "500x"
    made_for = Placing(positions="packed")

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        contexts = self.headed(contexts)
        chunks = list(chain.from_iterable(contexts))
        counts = self.counts(chunks, [r for c, r in zip(contexts, ratios, strict=True) for _ in c])
        made = iter(self.kept(chunks, counts, self.behind(counts)))
        out: list[list[AnchorKV]] = []
        for context in contexts:
            before = 0
            out.append([])
            for _ in context:
                kv = next(made)
                out[-1].append(self._ahead(kv, kv.source_len - before))
                before += kv.anchors
        return self.closed(out, behind=True)

    def _ahead(self, kv: AnchorKV, by: int) -> AnchorKV:
        """Memory whose keys stand `by` positions behind their slots."""
        keys = rotate(kv.keys, torch.full_like(kv.positions, by), self.backbone.inv_freq)
        slots = self.backbone.even(uniform(kv.source_len, kv.anchors))
        return replace(kv, keys=keys, positions=slots.positions.to(keys.device))
