"""What every objective says: what it checks and trains, what it draws, its loss and what it records."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from sac_rag.compress.adapter import Card
from sac_rag.compress.methods.base import Method
from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train.batch import Batch, answer_loss, scored_logits
from sac_rag.train.config import Settings, TrainConfig
from sac_rag.train.data import Mixture, TokenisedContext
from sac_rag.train.teacher import Teacher

TRIES = 500
"""Micro-batches without anything to learn from in a row after which there is nothing."""
QUESTIONS = 5
"""At most this many questions of a context share its encoder pass, of several joined ones so many times more."""

Loss = tuple[torch.Tensor, dict[str, float]]
"""A scalar to differentiate, and what of it is recorded, by name."""


class Objective(ABC):
    """What a stage teaches a method. Made once for a stage; its constructor raises ConfigError for a method or a
    teacher that it has no use for."""

    Settings: ClassVar[type[Settings]] = Settings
    """What it is told besides what every stage has."""
    owns: ClassVar[str] = ""
    """How the names of parameters begin that it alone trains; "" trains all that no other objective owns."""
    plain: ClassVar[bool] = False
    """Whether it draws texts without the questions that stand with them."""
    takes_teacher: ClassVar[bool] = False
    runs_model: ClassVar[bool] = True
    """Whether its loss passes through the model's blocks."""
    records: ClassVar[tuple[str, ...]] = ("loss",)
    """What of a step is smoothed and shown, by name."""

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        self.config, self.method, self.teacher = config, method, teacher
        self.own: Any = config.own
        if teacher and not self.takes_teacher:
            raise ConfigError(f"objective {config.objective} has no use for a teacher; leave it out")

    @classmethod
    def prepare(cls, config: TrainConfig, method: Method, begun: Path | None, card: Card) -> None:
        """Give a method what a stage trains and it has not got. begun: the adapter folder that it was loaded from, with
        that one's card; None for a fresh one. Raises ConfigError for a method that has no use for it."""
        return

    def draw(self, mixture: Mixture, step: int, part: int) -> Batch:
        """One micro-batch that something can be learned from.

        Every choice is drawn from (seed, step, part), so a resumed run repeats it. Raises TrainingError when none
        comes.
        """
        c = self.config
        rng = random.Random(f"{c.seed}/{c.objective}/{step}/{part}")
        for _ in range(TRIES):
            contexts: list[TokenisedContext] = []
            tokens = 0
            while tokens < c.step_tokens:
                drawn = self.contexts(mixture, c.longest(step), rng)
                contexts += drawn
                tokens += sum(map(self.size, drawn))
            if (batch := self.batch(contexts, step, rng)) is not None:
                return batch
        raise TrainingError(f"nothing to learn from: {self.nothing()}")

    def contexts(self, mixture: Mixture, longest: int, rng: random.Random) -> list[TokenisedContext]:
        """What is drawn at once, of at most `longest` tokens each."""
        return [mixture.draw(longest)]

    def size(self, context: TokenisedContext) -> int:
        """Tokens that a context adds to a micro-batch, roughly."""
        pairs = sorted((len(q) + len(a) + 16 for q, a in context.pairs), reverse=True)[:QUESTIONS]
        return len(context.ids) * (1 + context.quoted) + sum(pairs)

    def ratios(self, count: int, rng: random.Random) -> list[float]:
        """One per context."""
        return rng.choices(self.config.ratios, self.config.ratio_weights, k=count)

    @abstractmethod
    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch | None:
        """What is learned from contexts; None where that is nothing."""

    def nothing(self) -> str:
        """Why no context taught anything."""
        return f"the last {TRIES} micro-batches were empty"

    @abstractmethod
    def loss(self, batch: Batch, step: int) -> Loss:
        """The loss of a batch, differentiable in what is trained, and all or some of `records`."""


@dataclass(frozen=True)
class ReadingSettings(Settings):
    """Objectives that read behind memories (all but salience)"""

    opens = True
    """Whether what begins causal ends bidirectional."""
    future_from: float = 0.0
    """Causal start: added to the encoder's scores of later tokens at the first step (such as -8), then less and less;
    0 is bidirectional from the first step. With objective "budget" it stays."""
    future_steps: int = 150
    """Steps after which the causal start is over."""

    def check(self, steps: int) -> None:
        if not -1e4 <= self.future_from <= 0:
            raise ConfigError(f"future_from is {self.future_from:g}; use 0, or a bias between -10000 and 0 such as -8")
        if self.future_from and self.opens and not 1 <= self.future_steps <= steps:
            raise ConfigError(
                f"future_steps is {self.future_steps} of {steps} steps; it must lie in 1..{steps}, or the encoder "
                "would not end bidirectional"
            )

    def counts(self) -> dict[str, int]:
        return {"future_steps": self.future_steps}

    def future(self, step: int) -> float | None:
        """The bias on later tokens at a step: linear from `future_from` to none at `future_steps`, if it opens."""
        if not self.future_from or (self.opens and step >= self.future_steps):
            return None
        return self.future_from * (1 - step / self.future_steps) if self.opens else self.future_from


class Reads(Objective):
    """An objective whose loss is that of tokens read behind memories."""

    Settings = ReadingSettings
    own: ReadingSettings

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        super().__init__(config, method, teacher)
        if self.own.future_from and method.causal:
            raise ConfigError(
                f"future_from is {self.own.future_from:g}, but this {method.name} encoder sees no later tokens: leave "
                "it out"
            )

    def loss(self, batch: Batch, step: int) -> Loss:
        return loss_of(batch, self.method, future_bias=self.own.future(step))


def loss_of(
    batch: Batch,
    method: Method,
    *,
    future_bias: float | None = None,
    teacher: Teacher | None = None,
    distil_weight: float = 0.0,
) -> Loss:
    """Weighted mean next-token cross-entropy (nats), plus `distil_weight` times the divergence from the teacher.

    Recorded are the plain means over answers ("loss") and quoted pieces ("recall"), and the divergence ("distil").
    future_bias: as in `Method.write`. The batch must have readings.
    """
    logits = scored_logits(batch, method, future_bias=future_bias)
    loss, log = answer_loss(batch, logits)
    if teacher and distil_weight and any(row.pair for row in batch.rows):
        said = batch.each(lambda row: row.pair is not None).to(logits.device)
        apart = teacher.divergence(batch, logits[said])
        loss = loss + distil_weight * apart
        log["distil"] = float(apart.detach())
    return loss, log
