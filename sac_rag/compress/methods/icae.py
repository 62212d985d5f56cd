"""ICAE: the in-context autoencoder (Ge et al., arXiv 2307.06945), as SAC's section 4 compares it.

Memory tokens behind each sub-context; their last states are what the frozen decoder reads as its input embeddings, so
a slot carries one vector, not one a layer. Trained by autoencoding and continuation, then on questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods.appended import Appends
from sac_rag.compress.methods.base import Chunk, parted
from sac_rag.compress.placing import Placing
from sac_rag.compress.selectors import uniform


class Icae(Appends):
    """The states become keys and values by one pass of the decoder, behind the prompt's prefix: from there on, the
    same as reading them in a prompt. Those of a context follow one another, as the published code has them."""

    name = "icae"
    made_for = Placing(positions="packed")
    adapts = "whole"

    def identity(self) -> dict[str, Any]:
        """States are read behind the prefix, so that memory depends on it, too."""
        return {**super().identity(), "prefix": self.layout.prefix}

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        contexts = self.headed(contexts)
        chunks = list(chain.from_iterable(contexts))
        counts = self.counts(chunks, [r for c, r in zip(contexts, ratios, strict=True) for _ in c])
        states = iter(self.states(chunks, counts))
        end = [] if self.lm is None else [self.lm[None].to(self.backbone.dtype)]
        prefix = torch.tensor(self.backbone.template(self.layout.prefix), dtype=torch.int64)
        texts = [torch.cat([*(next(states) for _ in context), *end]) for context in contexts]
        read = self.backbone.encode(
            [prefix] * len(texts),
            [self.backbone.even(len(prefix) + torch.arange(len(text))) for text in texts],
            appended=texts,
            causal=True,
            use_lora=False,
        )
        sizes, out = iter(counts), []
        for kv, context in zip(read, contexts, strict=True):
            lengths = [len(chunk) for chunk in context]
            places = [uniform(n, next(sizes)) for n in lengths]
            if end:  # one token more
                places[-1] = torch.cat((places[-1], torch.tensor([lengths[-1]])))
                lengths[-1] += 1
            out.append(parted(kv, places, lengths))
        return out

    def states(self, chunks: Sequence[Chunk], counts: Sequence[int]) -> list[torch.Tensor]:
        """What the decoder reads in place of each chunk: last states (slots, width) of its memory tokens."""
        return self.backbone.hidden(
            [torch.tensor(c) for c in chunks],
            [len(c) + torch.arange(n) for c, n in zip(chunks, counts, strict=True)],
            **self.behind(counts),
        )
