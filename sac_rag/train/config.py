"""Settings that every stage of training has, and what follows from them at a step. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sac_rag.config import check_ratio
from sac_rag.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """What some objectives alone read; subclasses stand beside them in `objectives/`."""

    def check(self, steps: int) -> None:
        """Raises ConfigError for a value out of range, in a stage of so many steps."""

    def counts(self) -> dict[str, int]:
        """Those that are numbers of steps, by name."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training. `objectives.configured` makes one by the names of all settings."""

    objective: str = "qa"
    """qa (answer questions: of the file, or made out of any text), summarise (say summaries of documents), lm (continue
    a text), ae (say a text again, piece by piece), ae+lm (both, of the halves of a text), salience (learn which tokens
    questions ask for: fits the selector alone), budget (learn which heads need the memory: fits the budget alone) or
    reader (answer questions behind memories that stay as they are: trains a reader adapter alone)."""
    own: Settings
    """What the objective alone reads."""
    steps: int = 1000
    """Optimiser steps of this stage."""
    step_tokens: int = 800
    """Tokens (encoder and decoder together) of one micro-batch; contexts are drawn until it is full."""
    accumulate: int = 2
    """Micro-batches per optimiser step, shared out when several processes train together."""
    ratios: tuple[float, ...] = (2.0, 5.0, 15.0)
    """Ratios, one drawn per context."""
    ratio_weights: tuple[float, ...] = (0.15, 0.5, 0.35)
    """Weights by which the ratios are drawn, one for each."""
    learning_rate: float = 8e-4
    """Peak rate of LoRA, anchor embedding and prefix."""
    warmup: int = 40
    """Steps of linear warm-up."""
    decay_from: float = 0.6
    """Share of the steps after which the rate falls linearly to a twentieth."""
    weight_decay: float = 0.01
    """AdamW weight decay on LoRA matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moments (paper: 0.9, 0.95)."""
    clip: float = 1.0
    """Largest gradient norm."""
    max_context: int = 320
    """Longest context in tokens; longer ones are skipped (questions) or cut to windows (texts)."""
    first_context: int = 192
    """Limit at the first step; it grows linearly to `max_context` over the first half: short passages first."""
    start_share: float = 0.0
    """Share of the weights it began from in those it leaves behind (WiSE-FT, arXiv 2109.01903): both averaged serve the
    data of before and of now better than either. 0 leaves what was trained."""
    average_from: float = 1.0
    """Share of the steps after which the weights of all steps are averaged: the mean is what is left (Izmailov et al.,
    2018, arXiv 1803.05407). 1 leaves the last ones."""
    checkpoint_minutes: float = 4.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Order of data and all other chance."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.step_tokens < 64 or self.accumulate < 1:
            raise ConfigError(
                f"steps {self.steps}, step_tokens {self.step_tokens} (>= 64), accumulate {self.accumulate}"
            )
        if len(self.ratios) != len(self.ratio_weights) or not self.ratios:
            raise ConfigError(f"ratios {self.ratios} need one weight each, got {self.ratio_weights}")
        for ratio in self.ratios:
            check_ratio(ratio)
        if not 0 <= self.average_from <= 1 or not 0 <= self.start_share < 1:
            raise ConfigError(
                f"average_from is {self.average_from:g} (0..1), start_share is {self.start_share:g} (0, or below 1)"
            )
        self.own.check(self.steps)

    def changed(self, **values: Any) -> TrainConfig:
        """The same but for some settings, by their names, those of the objective among them."""
        mine = {f.name for f in fields(self.own)}
        own = replace(self.own, **{name: value for name, value in values.items() if name in mine})
        return replace(self, own=own, **{name: value for name, value in values.items() if name not in mine})

    def flat(self) -> dict[str, Any]:
        """All settings by name, as cards, checkpoints and plans hold them."""
        common = asdict(self)
        return {**common.pop("own"), **common}

    def scaled(self, factor: float) -> TrainConfig:
        """With `factor` times the steps, and all that is counted in them."""
        counts = {"steps": self.steps, "warmup": self.warmup, **self.own.counts()}
        return self.changed(**{name: max(1, round(factor * n)) for name, n in counts.items()})

    def longest(self, step: int) -> int:
        """Tokens of a context at a step, at most."""
        first = min(self.first_context, self.max_context)
        return int(first + (self.max_context - first) * min(1.0, 2 * (step / self.steps)))

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up, constant, linear decay to 5 %."""
        start = self.decay_from * self.steps
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step < start:
            return self.learning_rate
        return self.learning_rate * max(0.05, 1 - 0.95 * (step - start) / max(1.0, self.steps - start))
