"""What ICAE, 500xCompressor and EPL have in common: learned memory tokens behind the text that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone, How
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.announced import Announced, like_embeddings
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.selectors import anchor_count
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import MemoryInvalid


class Appends(Announced):
    """A method whose LoRA encoder reads a chunk and then memory tokens, which see it all and each other from the left.

    tokens: (510, width), a row a slot; a chunk of K slots takes the first K, so that one adapter serves all ratios.
    Rows start as draws of N(mean, std) of the embedding matrix. K is counted as SAC counts anchors, chunk by chunk.
    header, lm_token: as in `announced`.
    """

    causal = True

    def __init__(self, backbone: Backbone, layout: PromptLayout, *, header: str = "", lm_token: bool = False) -> None:
        super().__init__(backbone, layout)
        self.announce(header, lm_token)
        self.tokens = nn.Parameter(like_embeddings(self, MAX_PASSAGE_TOKENS))

    def parameters(self) -> Mapping[str, nn.Parameter]:
        found = {"tokens": self.tokens, **dict(self.backbone.trainable())}
        return found if self.lm is None else {**found, "lm": self.lm}

    def counts(self, chunks: Sequence[Chunk], ratios: Sequence[float]) -> list[int]:
        """Memory tokens of each chunk; raises MemoryInvalid for an empty one."""
        if not all(chunks):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        return [min(anchor_count(len(c), r), len(self.tokens)) for c, r in zip(chunks, ratios, strict=True)]

    def behind(self, counts: Sequence[int]) -> How:
        """How chunks with so many memory tokens are encoded."""
        return {"appended": [self.tokens[:n] for n in counts], "causal": True}

    def kept(self, chunks: Sequence[Chunk], counts: Sequence[int], how: How) -> list[AnchorKV]:
        """Keys and values of the memory tokens of each chunk; positions are those behind it: L, L + 1, ..."""
        picks = [self.backbone.even(len(c) + torch.arange(n)) for c, n in zip(chunks, counts, strict=True)]
        return self.backbone.encode([torch.tensor(c) for c in chunks], picks, **how)
