"""The training loop: draw, compress, read, step, checkpoint. Knows nothing of the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import layout_of
from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train import checkpoint
from sac_rag.train.data import Mixture
from sac_rag.train.objectives import Batch, Recipe, continuation_batch, loss_of, question_batch
from sac_rag.train.team import Team


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training: "lm" (pretraining on plain text) or "qa" (finetuning on questions)."""

    objective: str = "qa"
    """"lm" or "qa"."""
    steps: int = 1000
    """Optimiser steps of this stage."""
    step_tokens: int = 800
    """Tokens (encoder and decoder together) of one micro-batch; contexts are drawn until it is full."""
    accumulate: int = 2
    """Micro-batches per optimiser step, shared out when several processes train together."""
    ratios: tuple[float, ...] = (2.0, 5.0, 15.0)
    """Ratios, one drawn per context."""
    ratio_weights: tuple[float, ...] = (0.15, 0.5, 0.35)
    """Their probabilities, up to a factor."""
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
    """Longest context in tokens; longer ones are skipped (qa) or cut to windows (lm)."""
    first_context: int = 192
    """Limit at the first step; it grows linearly to `max_context` over the first half: short passages first."""
    recall_weight: float = 0.25
    """Loss weight of continuing a quoted piece of the context from memory; falls to a fifth over the stage."""
    distractor_share: float = 0.5
    """Share of contexts whose memory also holds others of the micro-batch, shuffled."""
    distractors_from: float = 0.5
    """Share of the stage after which distractors begin; 0 for an adapter that already reads one passage."""
    prompts: tuple[str, ...] = ()
    """Names of other prompts than the adapter's own layout, of `sac_rag.compress.templates`."""
    prompt_share: float = 0.5
    """Share of contexts that are read in one of `prompts`."""
    mismatch_share: float = 0.0
    """Share of contexts whose questions stand behind other passages, with "The passages do not say." as the answer."""
    checkpoint_minutes: float = 4.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Order of data and all other chance."""

    def __post_init__(self) -> None:
        if self.objective not in ("lm", "qa"):
            raise ConfigError(f"objective is {self.objective!r}; use lm or qa")
        if self.steps < 1 or self.step_tokens < 64 or self.accumulate < 1:
            raise ConfigError(
                f"steps {self.steps}, step_tokens {self.step_tokens} (>= 64), accumulate {self.accumulate}"
            )
        if len(self.ratios) != len(self.ratio_weights) or not self.ratios or min(self.ratios) < 1:
            raise ConfigError(f"ratios {self.ratios} need one weight each, got {self.ratio_weights}; ratios are >= 1")


@dataclass
class Progress:
    """What a listener sees after each step."""

    step: int
    steps: int
    loss: float
    recall: float
    learning_rate: float
    examples: int
    """Questions (qa) or texts (lm) seen in all."""
    per_second: float
    extra: dict[str, float] = field(default_factory=dict)


def rate_at(step: int, c: TrainConfig) -> float:
    """Learning rate of a step: warm-up, constant, linear decay to 5 %."""
    start = c.decay_from * c.steps
    if step < c.warmup:
        return c.learning_rate * (step + 1) / c.warmup
    if step < start:
        return c.learning_rate
    return c.learning_rate * max(0.05, 1 - 0.95 * (step - start) / max(1.0, c.steps - start))


def train(
    method: Method,
    mixture: Mixture,
    config: TrainConfig,
    card: Card,
    folder: Path,
    *,
    listen: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Card:
    """Run (or resume) one stage and leave adapter.safetensors, card.json, checkpoint and metrics in `folder`.

    A checkpoint in `folder` is resumed exactly, whatever kill ended the run before it. `stop` is asked after
    each step; a true answer checkpoints and returns early. Under `torchrun` or `accelerate launch` the
    micro-batches of a step are shared out; every process sees the same data order and takes the same steps.
    """
    team = Team.join(method.backbone.device)
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
    layouts = tuple(layout_of(method.backbone.tokenizer, name) for name in config.prompts)
    parameters = method.parameters()
    live = [p for p in parameters.values() if p.requires_grad]
    flat = [p for p in live if p.ndim != 2]
    groups = [
        {"params": [p for p in live if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    path = folder / "checkpoint.safetensors"
    state: dict[str, Any] = {"step": 0, "examples": 0, "seconds": 0.0, "smooth": {}}
    if path.exists():
        state = checkpoint.restore(path, parameters, optimiser)
        mixture.restore(state["data"])
        if state["step"] >= config.steps and (folder / "card.json").exists():
            return Card.read(folder)
    metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8") if team.leads else None
    saved = time.monotonic()
    smooth = {"loss": math.nan, "recall": math.nan, **state.get("smooth", {})}

    def save() -> None:
        state["smooth"] = {k: v for k, v in smooth.items() if not math.isnan(v)}
        checkpoint.save(path, parameters, optimiser, {**state, "data": mixture.state(), "config": _plain(config)})

    while state["step"] < config.steps:
        began = time.monotonic()
        step = state["step"]
        rate = rate_at(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("questions", "loss", "losses", "recall", "recalls"), 0.0)
        mine = team.mine(config.accumulate)
        for part in range(config.accumulate):
            batch = _draw(method, mixture, config, layouts, step, part)
            if part not in mine:
                continue
            loss, log = loss_of(batch, method)
            (loss / config.accumulate).backward()
            sums["questions"] += batch.examples
            for key, value in log.items():
                sums[key] += value
                sums["losses" if key == "loss" else "recalls"] += 1
        team.add_gradients(live)
        sums = dict(zip(sums, team.add(list(sums.values())), strict=True))
        for key, count in (("loss", sums["losses"]), ("recall", sums["recalls"])):
            if count:
                value = sums[key] / count
                smooth[key] = value if math.isnan(smooth[key]) else 0.95 * smooth[key] + 0.05 * value
        seen = int(sums["questions"])
        norm = float(torch.nn.utils.clip_grad_norm_(live, config.clip))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient is {norm} at step {step}; resume with a lower --learning-rate")
        optimiser.step()
        took = time.monotonic() - began
        state |= {"step": step + 1, "examples": state["examples"] + seen, "seconds": state["seconds"] + took}
        progress = Progress(
            step + 1,
            config.steps,
            smooth["loss"],
            smooth["recall"],
            rate,
            state["examples"],
            seen / took,
            {"norm": norm},
        )
        if metrics:
            metrics.write(json.dumps({k: v for k, v in dataclasses.asdict(progress).items() if v == v}) + "\n")
            metrics.flush()
        if listen and team.leads:
            listen(progress)
        ending = team.any(state["step"] == config.steps or bool(stop and stop()))
        if team.leads and (ending or time.monotonic() - saved > 60 * config.checkpoint_minutes):
            save()
            saved = time.monotonic()
        if ending:
            break
    if metrics:
        metrics.close()
    trained = {
        **_plain(config),
        "steps_done": state["step"],
        "examples": state["examples"],
        "hours": round(state["seconds"] / 3600, 2),
        "data": {s.name: s.weight for s in mixture.sources},
        "final_loss": round(smooth["loss"], 3) if smooth["loss"] == smooth["loss"] else None,
    }
    stages = [*card.training.get("stages", []), trained]
    card = dataclasses.replace(card, training={**card.training, "stages": stages})
    if team.leads:
        adapter.save(method, card, folder)
    return card


def _draw(
    method: Method, mixture: Mixture, config: TrainConfig, layouts: tuple[PromptLayout, ...], step: int, part: int
) -> Batch:
    """One micro-batch; every choice is drawn from (seed, step, part), so a resumed run repeats it."""
    rng = random.Random(f"{config.seed}/{config.objective}/{step}/{part}")
    done = step / config.steps
    limit = config.first_context + (config.max_context - config.first_context) * min(1.0, 2 * done)
    recipe = Recipe(
        recall_weight=config.recall_weight * (1 - 0.8 * done),
        distractor_share=config.distractor_share if done >= config.distractors_from else 0.0,
        layouts=layouts,
        layout_share=config.prompt_share,
        mismatch_share=config.mismatch_share,
    )
    contexts, tokens = [], 0
    while tokens < config.step_tokens:
        c = mixture.draw(int(limit))
        contexts.append(c)
        pairs = sorted((len(q) + len(a) + 16 for q, a in c.pairs), reverse=True)[: recipe.questions]
        tokens += len(c.ids) + sum(pairs)
    ratios = rng.choices(config.ratios, config.ratio_weights, k=len(contexts))
    if config.objective == "lm":
        return continuation_batch(contexts, ratios)
    return question_batch(contexts, ratios, method, recipe, rng)


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def sources_of(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Parse `PATH` or `PATH=WEIGHT` arguments."""
    found = []
    for spec in specs:
        path, _, weight = spec.partition("=")
        try:
            found.append((path, float(weight) if weight else 1.0))
        except ValueError:
            raise ConfigError(
                f"data weight {weight!r} in {spec!r} is not a number; write PATH or PATH=WEIGHT"
            ) from None
    return found
