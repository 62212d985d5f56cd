"""KVzip (arXiv 2505.23416): each head keeps what the model attends when it says the text again. No training.

The form of the paper: the frozen model reads the passage, then a request to repeat it and the passage once more. The
score of a slot is the largest attention weight that any of these queries, of any query head of its group, gives it
(eq. 3); the best slots over all heads of all layers stay. The question is not needed, so it is done once, offline.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.frozen import Frozen, best, kept, weights
from sac_rag.compress.selectors import anchor_count


class KvZip(Frozen):
    """even_heads: every head keeps the same number, its own best (an ablation of the paper); else heads compete."""

    name = "kvzip"
    weighs = True

    def __init__(self, backbone: Backbone, layout: PromptLayout, *, even_heads: bool = False) -> None:
        super().__init__(backbone, layout)
        self._even = even_heads

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
        return kept(whole, best(self.scores(chunk, whole), count, even=self._even))

    def scores(self, chunk: Chunk, whole: AnchorKV) -> torch.Tensor:
        """Largest attention weight of each slot while the chunk is said again, (layers, kv_heads, tokens) fp32."""
        first, found = self.ahead_tokens, []

        def look(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            found.append(weights(q, k)[..., first : first + len(chunk)].amax(1))

        self.again(chunk, whole, look)
        return torch.stack(found)
