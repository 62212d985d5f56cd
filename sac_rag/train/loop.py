"""The training loop: draw, compress, read, step, checkpoint. Knows nothing of the command line, nor of objectives."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.methods.base import Method
from sac_rag.train import checkpoint
from sac_rag.train.config import TrainConfig
from sac_rag.train.data import Mixture
from sac_rag.train.objectives import OBJECTIVES
from sac_rag.train.objectives.base import Objective
from sac_rag.train.state import State
from sac_rag.train.teacher import Teacher
from sac_rag.train.team import Team

CHECKPOINT = "checkpoint.safetensors"
FREE = ("learning_rate", "steps", "clip", "checkpoint_minutes")
"""Settings that may be others when a run goes on."""


@dataclass
class Progress:
    """What a listener sees after each step."""

    step: int
    steps: int
    loss: float
    """In nats per token, smoothed over the steps, as are `recall` and what else the objective records."""
    recall: float
    learning_rate: float
    examples: int
    """Questions and texts to be quoted (qa, summarise, budget), questions (salience) or texts (lm, ae), seen in all."""
    per_second: float
    """Of these."""
    tokens: int = 0
    """Tokens written and read in all; a teacher's are not counted."""
    extra: dict[str, float] = field(default_factory=dict)
    """The norm of the gradient, and what else was recorded."""


def train(
    method: Method,
    mixture: Mixture,
    config: TrainConfig,
    card: Card,
    folder: Path,
    *,
    start_from: str | None = None,
    teacher: Teacher | None = None,
    listen: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Card:
    """Run (or resume) one stage and leave adapter.safetensors, card.json, checkpoint and metrics in `folder`.

    A checkpoint in `folder` is resumed exactly, whatever kill ended the run before it. `stop` is asked after
    each step; a true answer checkpoints and returns early. Under `torchrun` or `accelerate launch` the
    micro-batches of a step are shared out; every process sees the same data order and takes the same steps.
    start_from: fingerprint of the tensors that `method` has from another adapter. teacher: goes with a `distil_weight`
    above 0. Raises ConfigError for settings that this method cannot follow, or that a run in `folder` does not have.
    """
    objective: Objective = OBJECTIVES.load(config.objective)(config, method, teacher)
    team = Team.join(method.backbone.device)
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
    state, path = State(objective), folder / CHECKPOINT
    settings = _settings(config, mixture, card, start_from, teacher)
    if path.exists():
        noted = state.restore(path, mixture)
        checkpoint.check_same(folder, noted, {k: v for k, v in settings.items() if k not in FREE})
        if state.step >= config.steps and (made := _finished(folder, state.step)):
            return made
    saved = time.monotonic()
    with _metrics(folder, team) as write:
        while state.step < config.steps:
            progress = _step(objective, mixture, state, team)
            write(progress)
            if listen and team.leads:
                listen(progress)
            ending = team.any(state.step == config.steps or bool(stop and stop()))
            if team.leads and (ending or time.monotonic() - saved > 60 * config.checkpoint_minutes):
                state.save(path, mixture, settings)
                saved = time.monotonic()
            if ending:
                break
    stages = [*card.training.get("stages", []), _told(config, mixture, state, teacher)]
    card = dataclasses.replace(card, training={**card.training, "stages": stages})
    if team.leads:
        state.leave()
        card = adapter.save(method, card, folder)
    team.meet()  # the adapter is on disk before anyone reads it
    return card


def _step(objective: Objective, mixture: Mixture, state: State, team: Team) -> Progress:
    """One optimiser step over the micro-batches of all processes."""
    began, config, step = time.monotonic(), objective.config, state.step
    rate, mine = state.begin(), team.mine(config.accumulate)
    records = objective.records
    sums = dict.fromkeys(("examples", "tokens", *records, *(f"{name}/n" for name in records)), 0.0)
    for part in range(config.accumulate):
        batch = objective.draw(mixture, step, part)  # by every process: the order of data is one
        if part not in mine:
            continue
        loss, log = objective.loss(batch, step)
        (loss / config.accumulate).backward()
        counts = {"examples": batch.examples, "tokens": batch.tokens, **{f"{name}/n": 1 for name in log}}
        for name, value in (counts | log).items():
            sums[name] += value
    team.add_gradients(state.live)
    sums = dict(zip(sums, team.add(list(sums.values())), strict=True))
    norm = state.end({name: sums[name] / n for name in records if (n := sums[f"{name}/n"])})
    seen, took = int(sums["examples"]), time.monotonic() - began
    state.examples += seen
    state.tokens += int(sums["tokens"])
    state.seconds += took
    shown = {"recall": math.nan, **state.smooth}
    loss_shown, recall = shown.pop("loss", math.nan), shown.pop("recall")
    return Progress(
        state.step,
        config.steps,
        loss_shown,
        recall,
        rate,
        state.examples,
        seen / took,
        state.tokens,
        {"norm": norm, **shown},
    )


@contextlib.contextmanager
def _metrics(folder: Path, team: Team) -> Iterator[Callable[[Progress], None]]:
    """What writes a line a step, where this process leads."""
    if not team.leads:
        yield lambda progress: None
        return
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:

        def write(progress: Progress) -> None:
            lines.write(json.dumps({k: v for k, v in dataclasses.asdict(progress).items() if v == v}) + "\n")
            lines.flush()

        yield write


def _finished(folder: Path, steps: int) -> Card | None:
    """The card of a stage that is over, unless a kill came before it was written."""
    made = Card.read(folder) if (folder / "card.json").exists() else None
    return made if made and made.training["stages"][-1]["steps_done"] == steps else None


def _told(config: TrainConfig, mixture: Mixture, state: State, teacher: Teacher | None) -> dict[str, Any]:
    """A stage as its card tells it."""
    loss = state.smooth.get("loss")
    return {
        **_plain(config.flat()),
        "steps_done": state.step,
        "examples": state.examples,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 1),
        "hours": round(state.seconds / 3600, 2),
        "data": {s.name: s.weight for s in mixture.sources},
        **({"teacher": teacher.fingerprint} if teacher else {}),
        "final_loss": None if loss is None else round(loss, 3),
    }


def _settings(
    config: TrainConfig, mixture: Mixture, card: Card, start_from: str | None, teacher: Teacher | None
) -> dict[str, Any]:
    """What a run is, and stays where it goes on but for what is FREE."""
    made = config.flat() | {f"weight of {s.name}": s.weight for s in mixture.sources}
    made |= {n: getattr(card, n) for n in ("base_fingerprint", "method", "lora", "options", "layout", "placing")}
    return _plain(made | {"start_from": start_from, "teacher": teacher.fingerprint if teacher else None})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values, as they are read back."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
