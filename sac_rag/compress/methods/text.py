"""Methods that keep some words of a context and leave the others out: hard compression.

What they keep becomes memory by one prefill of the decoder, behind the prompt's prefix, as if the words stood there as
text. Placed one after the other, the memory of a context is read as its kept text would be.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.base import Chunk, Method, parted
from sac_rag.compress.placing import Placing


class KeepsText(Method):
    """Subclasses say which words: `keep`."""

    made_for = Placing(positions="packed")
    carries = "text"
    adapts = "nothing"
    trains = False
    causal = True

    @abstractmethod
    def keep(self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float]) -> list[list[torch.Tensor]]:
        """Of each chunk of each context the tokens that stay: ascending indices, int64, at least one."""

    def identity(self) -> dict[str, Any]:
        """Words are read behind the prefix, so that memory depends on it, too."""
        return {**super().identity(), "prefix": self.layout.prefix}

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        prefix = self.backbone.template(self.layout.prefix)
        kept = self.keep(contexts, ratios)
        texts = [
            torch.tensor([*prefix, *(c[i] for c, at in zip(chunks, places, strict=True) for i in at.tolist())])
            for chunks, places in zip(contexts, kept, strict=True)
        ]
        picks = [self.backbone.even(torch.arange(len(prefix), len(text))) for text in texts]
        read = self.backbone.encode(texts, picks, causal=True, use_lora=self.reads_with_lora)
        lengths = [[len(c) for c in chunks] for chunks in contexts]
        return [parted(*of) for of in zip(read, kept, lengths, strict=True)]
