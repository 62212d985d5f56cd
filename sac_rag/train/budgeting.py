"""Fitting the budget: which heads of the decoder need the memory to answer?"""

from __future__ import annotations

import torch

from sac_rag.compress.methods.base import BUDGET, Method
from sac_rag.errors import ConfigError
from sac_rag.train.batch import Batch, answer_loss, readings_of
from sac_rag.train.config import TrainConfig
from sac_rag.train.objectives.base import Loss
from sac_rag.train.objectives.questions import Questions, QuestionSettings
from sac_rag.train.teacher import Teacher


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


class HeadBudgetSettings(QuestionSettings):
    """As those of questions; the encoder does not learn, so that its causal start stays."""

    opens = False

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.distil_weight:
            raise ConfigError(
                f"distil_weight is {self.distil_weight:g} with objective budget; a teacher has a say in answers (qa) "
                "alone"
            )


class HeadBudget(Questions):
    """Questions that each head reads with a share of the memory."""

    Settings = HeadBudgetSettings
    owns = BUDGET

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        super().__init__(config, method, teacher)
        check_budget(method)

    def loss(self, batch: Batch, step: int) -> Loss:
        return budget_loss(batch, self.method, future_bias=self.own.future(step))
