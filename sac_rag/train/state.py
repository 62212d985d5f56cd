"""What a run changes from step to step: parameters, optimiser, running means, counts. Saved and restored whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sac_rag.errors import TrainingError
from sac_rag.train import checkpoint
from sac_rag.train.data import Mixture
from sac_rag.train.objectives import OBJECTIVES
from sac_rag.train.objectives.base import Objective

SMOOTH = 0.95
"""Share that a smoothed record keeps of its value before."""


class State:
    """A stage under way. live: the parameters that it trains."""

    def __init__(self, objective: Objective) -> None:
        config = self._config = objective.config
        others = tuple({OBJECTIVES.load(name).owns for name in OBJECTIVES} - {""})
        apart = () if objective.owns else others
        self._parameters = objective.method.trained()
        self._trained = {
            name: p
            for name, p in self._parameters.items()
            if p.requires_grad and name.startswith(objective.owns) and not name.startswith(apart)
        }
        self.live = list(self._trained.values())
        groups = [
            {
                "params": [p for p in self.live if p.ndim == 2],
                "weight_decay": 0.0 if objective.owns else config.weight_decay,
            },
            {"params": [p for p in self.live if p.ndim != 2], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        self._start = [p.detach().clone() for p in self.live] if config.start_share else []
        self._averages: dict[str, torch.Tensor] = {}
        self.step, self.examples, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.smooth: dict[str, float] = {}
        """What the objective recorded, smoothed over the steps."""

    def restore(self, path: Path, mixture: Mixture) -> dict[str, Any]:
        """Go on from a checkpoint; the settings it was saved with."""
        noted = checkpoint.restore(path, self._parameters, self._optimiser, self._averages)
        mixture.restore(noted["data"])
        for name in ("step", "examples", "tokens", "seconds", "smooth"):
            setattr(self, name, noted.get(name, getattr(self, name)))
        settings: dict[str, Any] = noted["config"]
        return settings

    def save(self, path: Path, mixture: Mixture, settings: Mapping[str, Any]) -> None:
        counts = {name: getattr(self, name) for name in ("step", "examples", "tokens", "seconds", "smooth")}
        noted = {**counts, "data": mixture.state(), "config": settings}
        checkpoint.save(path, self._parameters, self._optimiser, noted, self._averages)

    def begin(self) -> float:
        """Begin a step without gradients, at its learning rate, which it returns."""
        rate = self._config.rate(self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        return rate

    def end(self, recorded: Mapping[str, float]) -> float:
        """Take the step along the gradients, whose norm it returns; raises TrainingError where that is not finite."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.live, self._config.clip))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient is {norm} at step {self.step}; resume with a lower --learning-rate")
        self._optimiser.step()
        first = math.ceil(self._config.average_from * self._config.steps)
        if self.step >= self._config.average_from * self._config.steps:
            self._average(self.step - first + 1)
        for name, value in recorded.items():
            self.smooth[name] = SMOOTH * self.smooth[name] + (1 - SMOOTH) * value if name in self.smooth else value
        self.step += 1
        return norm

    def _average(self, count: int) -> None:
        """Take one more step's weights into the running means, the `count`-th."""
        for name, p in self._trained.items():
            if name in self._averages:
                self._averages[name].lerp_(p.detach(), 1 / count)
            else:
                self._averages[name] = p.detach().clone()

    @torch.no_grad()
    def leave(self) -> None:
        """Put into the parameters what the stage leaves behind: the means, and its share of what it began from."""
        for name, mean in self._averages.items():
            self._parameters[name].copy_(mean)
        for p, before in zip(self.live, self._start, strict=bool(self._start)):
            p.lerp_(before, self._config.start_share)
