"""Fitting the budget: which heads of the decoder need the memory to answer?"""

from __future__ import annotations

import torch

from sac_rag.compress.methods.base import Method
from sac_rag.errors import ConfigError
from sac_rag.train.objectives import Batch, answer_loss, readings_of


def check_budget(method: Method) -> None:
    """Raises ConfigError for a method whose heads all keep the same."""
    if method.budget is None or not method.budget.learned:
        raise ConfigError(
            f"objective budget fits what each head keeps, and this {method.name} adapter has nothing to fit; "
            "train a new one with --option budget=learned"
        )


def budget_loss(
    batch: Batch, method: Method, *, future_bias: float | None = None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Answer loss (nats) where each head's attention goes to the memory by its share alone, differentiable in the
    scores.

    The memory holds all tokens, as the adapter writes them at 1x (future_bias: as in `Method.write`); without it a head
    sees the prefix. A context's shares have the mean that its ratio leaves: what is learned is which heads to serve
    first, at every ratio at once.
    """
    budget = method.budget
    assert budget is not None, "checked by `check_budget`"
    with torch.no_grad():
        memories = batch.memories(method, batch.written(method, ratio=1.0, future_bias=future_bias))
        bare = [method.memory((), layout=layout) if method.ahead(layout=layout) else None for layout in batch.layouts]
    ratios = [batch.ratios[pieces[0]] for pieces in batch.pieces]
    shares = torch.stack([budget.shares(1 / r) for r in ratios])
    return answer_loss(batch, method.backbone.read(memories, readings_of(batch), without=bare, shares=shares))
