"""How many tokens each head of each layer keeps of a passage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from sac_rag.compress.backbone import Backbone
from sac_rag.registry import Registry

BUDGETS = Registry(
    "budget",
    {"even": "sac_rag.compress.budgets:Even", "learned": "sac_rag.compress.budgets:Learned"},
)


class Budget(nn.Module, ABC):
    """A way to share out a passage's slots among heads, made for a backbone. What it learns goes with the adapter."""

    learned: ClassVar[bool] = False
    """Whether `--objective budget` fits it, by its `shares`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.shape = backbone.kv_shape[:2]

    def shares(self, mean: float) -> torch.Tensor:
        """Each head's share of a passage, (layers, kv_heads) in 0..1 with this mean, differentiable in the scores."""
        raise NotImplementedError(f"{type(self).__name__} learns no shares")

    @abstractmethod
    def forward(self, length: int, count: int) -> torch.Tensor:
        """Slots of each head, int64 (layers, kv_heads), each at most `length`, `count` of them on average exactly."""


class Even(Budget):
    """Every head keeps the same number, as in the paper."""

    def forward(self, length: int, count: int) -> torch.Tensor:
        return torch.full(self.shape, count)


class Learned(Budget):
    """Heads that look things up in a text keep much of it, others little or nothing. Ours, not the paper's.

    Few heads of a decoder retrieve (Wu et al., arXiv 2404.15574; DuoAttention, arXiv 2410.10819): what the others would
    find in a memory, they do not miss. A score for each head, learned by letting some of its attention go without
    the memory (`--objective budget`), gives its share of the tokens at any ratio: sigmoid(score - threshold), where the
    threshold makes the shares add up. Before it is fitted, all heads are alike.
    """

    learned = True
    LEAST = 0.02
    """Smaller shares are none: a run of one or two tokens serves nobody."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.scores = nn.Parameter(torch.zeros(self.shape, device=backbone.device))

    def shares(self, mean: float) -> torch.Tensor:
        s = self.scores.double()
        with torch.no_grad():
            threshold = _threshold(s, mean)
            slope = torch.sigmoid(s - threshold)
            slope = slope * (1 - slope)
        # The threshold moves with the scores so that the mean stays: its gradient, by the implicit function theorem.
        threshold = threshold + (slope * (s - s.detach())).sum() / slope.sum().clamp(min=1e-12)
        return torch.sigmoid(s - threshold)

    def forward(self, length: int, count: int) -> torch.Tensor:
        if count == length:
            return torch.full(self.shape, length)
        with torch.no_grad():
            shares = self.shares(count / length).cpu().flatten()
        wanted = shares * (shares >= min(self.LEAST, float(shares.max())))
        total = count * shares.numel()
        exact = wanted * total / wanted.sum()
        kept = exact.floor().long().clamp(max=length)
        # What is left goes slot by slot to the largest remainders, around full heads.
        while (left := total - int(kept.sum())) > 0:
            room = kept < length
            order = torch.where(room, exact - kept, -torch.inf).argsort(descending=True, stable=True)
            kept[order[: min(left, int(room.sum()))]] += 1
        return kept.view(self.shape)


def _threshold(scores: torch.Tensor, mean: float) -> torch.Tensor:
    """t with mean(sigmoid(scores - t)) = mean, by bisection."""
    low, high = scores.min() - 40, scores.max() + 40
    for _ in range(80):
        middle = (low + high) / 2
        above = torch.sigmoid(scores - middle).mean() > mean
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (low + high) / 2
