"""The passes by which systems write a memory, without their weights: what they cost depends on nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.selectors import anchor_count, uniform

PLAIN, ANCHORS, APPENDED = "plain", "anchors", "appended"
WAYS: Mapping[str, str] = {
    PLAIN: "the text alone, no token sees a later one",
    ANCHORS: "SAC: anchors among the tokens, every token sees all",
    APPENDED: "500xCompressor, EPL: memory tokens behind the text, no token sees a later one",
}


def write(backbone: Backbone, way: str, chunks: list[torch.Tensor], ratio: float) -> None:
    """Encode chunks (tokens,) as a way does, and drop what is made."""
    lengths = [len(c) for c in chunks]
    counts = [anchor_count(n, ratio) for n in lengths]
    if way == ANCHORS:
        picks = [backbone.even(uniform(n, k)) for n, k in zip(lengths, counts, strict=True)]
        marked = torch.zeros(backbone.width, device=backbone.device)
        backbone.encode(chunks, picks, anchor_embedding=marked)
        return
    behind = [torch.zeros(k if way == APPENDED else 0, backbone.width, dtype=backbone.dtype) for k in counts]
    kept = [
        backbone.even(torch.arange(n, n + k) if way == APPENDED else torch.arange(n))
        for n, k in zip(lengths, counts, strict=True)
    ]
    backbone.encode(chunks, kept, appended=behind, causal=True)
