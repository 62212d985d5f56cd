"""LLMLingua-2 (arXiv 2403.12968): a classifier of words says which stay, and the model reads what is left as text.

By default the classifier is ours (`compress.words`): trained here in minutes on questions, answers and summaries, not
on what a large model left of meeting transcripts, so figures are not those of LLMLingua-2's own weights. With these, in
a folder, the package `llmlingua` says which words stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sac_rag.compress import lingua
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.text import KeepsText
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.words import most, scores_of, shipped_sha256, text_of, words_at
from sac_rag.errors import MemoryInvalid


class LlmLingua2(KeepsText):
    """Of each chunk the tokens of the most probable words, as many as an anchor method keeps at that ratio.

    model: folder of LLMLingua-2's own weights, which keep about as many; empty for the classifier that ships.
    """

    name = "llmlingua2"

    def __init__(self, backbone: Backbone, layout: PromptLayout, *, model: str = "") -> None:
        super().__init__(backbone, layout)
        self._model = model
        if model:
            lingua.check(model)

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({} if self._model else {"classifier_sha256": shipped_sha256()})

    def keep(self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float]) -> list[list[torch.Tensor]]:
        return [
            [self._kept(chunk, ratio) for chunk in chunks] for chunks, ratio in zip(contexts, ratios, strict=True)
        ]

    def _kept(self, chunk: Chunk, ratio: float) -> torch.Tensor:
        if not len(chunk):
            raise MemoryInvalid("an empty passage cannot be compressed; give at least one token")
        tokenizer = self.backbone.tokenizer
        if not self._model:
            return most(scores_of(tokenizer, chunk), anchor_count(len(chunk), ratio))
        spans = lingua.kept_spans(self._model, text_of(tokenizer, chunk), 1 / ratio)
        kept = [i for i, word in enumerate(words_at(tokenizer, chunk, spans)) if word is not None]
        return torch.tensor(kept or [0])
