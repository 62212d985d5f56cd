"""DAST: Activation Beacon with slots where a context needs them (arXiv 2502.11493), as we interpret it.

Its exact normalisation is unpublished. Ours: a context of windows w with pieces j of about 51 tokens has
K = sum over w of L_w / r slots (each counted as SAC counts anchors), of which a piece gets K * weight_j,

    weight_j = 1/2 * n_j PPL_j / sum_i n_i PPL_i  +  1/2 * L_w / L * a_j / sum_(i in w) a_i,

where n_j are its tokens, PPL_j is the base model's perplexity on them, given the window's tokens before, and a_j the
attention that the window's last token pays them, the mean over all layers and heads: what is local and what is global.
Whole numbers by the largest remainder, at most n_j a piece and at least 1 a window; the beacons of a piece stand behind
equal parts of it. All else is `beacon`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F

from sac_rag.compress.attention import attend
from sac_rag.compress.methods.base import Chunk
from sac_rag.compress.methods.beacon import Beacon, behind_parts
from sac_rag.compress.selectors import anchor_count

PIECE = 51
"""Tokens of a piece, at most: with one slot at 51x, were all alike."""


class Dast(Beacon):
    """Pieces that surprise the base model, or that the end of their window looks back to, get more slots."""

    name = "dast"

    def ends(self, chunks: Sequence[Chunk], ratio: float) -> list[torch.Tensor]:
        starts = [cuts(len(chunk)) for chunk in chunks]
        sizes = [at.diff() for at in starts]
        found = [self.needs(chunk, at) for chunk, at in zip(chunks, starts, strict=True)]
        surprise = [n * p for n, (p, _) in zip(sizes, found, strict=True)]
        whole, total = float(torch.cat(surprise).sum()), sum(map(len, chunks))
        weights = [
            (s / whole + len(chunk) / total * a / a.sum()) / 2
            for s, (_, a), chunk in zip(surprise, found, chunks, strict=True)
        ]
        counts = iter(
            shared_out(weights, [n.tolist() for n in sizes], sum(anchor_count(len(c), ratio) for c in chunks))
        )
        return [
            torch.cat([s + behind_parts(n, next(counts)) for s, n in zip(at.tolist(), size.tolist(), strict=False)])
            for at, size in zip(starts, sizes, strict=True)
        ]

    @torch.no_grad()
    def needs(self, chunk: Chunk, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Perplexity of each piece of a window, and the attention that its last token pays it; (pieces,), float64.

        By a pass of its own, through the model's modules (`use_lora`) and not through weights packed for serving: a
        library and who answers from it must share slots out alike, to the last one.
        """
        backbone, front = self.backbone, self.front_ids
        ids = torch.tensor([*front, *chunk], device=backbone.device)
        paid = torch.zeros(len(ids), dtype=torch.float64, device=backbone.device)
        layers, heads, dim = backbone.kv_shape

        def mix(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            last = q[-1].view(heads, -1, dim).float() @ k.permute(1, 2, 0).float() * dim**-0.5
            paid.add_(last.softmax(-1).mean((0, 1)).double() / layers)
            return attend(q, k.transpose(0, 1), v.transpose(0, 1), causal=True)

        scored = torch.arange(len(front) - 1, len(ids) - 1)
        logits = backbone.walk(ids, torch.arange(len(ids)), mix, scored=scored.to(backbone.device), use_lora=True)
        lost = F.cross_entropy(logits.float(), ids[len(front) :], reduction="none").double().cpu()
        sizes = starts.diff().tolist()
        surprise = torch.stack([part.mean().exp() for part in lost.split(sizes)])
        return surprise, torch.stack([part.sum() for part in paid[len(front) :].cpu().split(sizes)])


def cuts(length: int) -> torch.Tensor:
    """Where the equal pieces of a window begin and where the last one ends, (pieces + 1,)."""
    pieces = -(-length // PIECE)
    return torch.arange(pieces + 1) * length // pieces


def shared_out(weights: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]], total: int) -> list[int]:
    """`total` slots by the weights of pieces, which sum to 1: whole numbers by the largest remainder, at most the size
    of a piece, at least 1 in a window.

    weights, sizes: of the pieces of each window. total: at least as many as there are windows. Of equal remainders the
    first.
    """
    wanted = [total * w for w in torch.cat(list(weights)).tolist()]
    most = list(chain.from_iterable(sizes))
    kept = [min(int(share), size) for share, size in zip(wanted, most, strict=True)]
    windows, first = [], 0
    for window in sizes:
        windows.append(range(first, first + len(window)))
        first += len(window)
    for window in windows:
        if not any(kept[j] for j in window):
            kept[max(window, key=lambda j: wanted[j])] = 1
    while sum(kept) < total:
        kept[max((j for j in range(first) if kept[j] < most[j]), key=lambda j: wanted[j] - kept[j])] += 1
    while sum(kept) > total:
        spare = [j for window in windows if sum(kept[j] for j in window) > 1 for j in window if kept[j]]
        kept[min(spare, key=lambda j: wanted[j] - kept[j])] -= 1
    return kept
