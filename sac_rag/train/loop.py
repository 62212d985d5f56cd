"""The training loop: draw, compress, read, step, checkpoint. Knows nothing of the command line."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import BUDGET, SELECTOR, Method
from sac_rag.compress.templates import layout_of
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train import checkpoint
from sac_rag.train.budgeting import budget_loss, check_budget
from sac_rag.train.config import TrainConfig, future_at, rate_at
from sac_rag.train.data import Mixture, TokenisedContext
from sac_rag.train.objectives import Batch, Shares, continuation_batch, loss_of, question_batch
from sac_rag.train.salience import check_selector, salience_batch, salience_loss, with_answers
from sac_rag.train.teacher import Teacher
from sac_rag.train.team import Team

CHECKPOINT = "checkpoint.safetensors"
GAP = "\n\n"
"""Between texts that are joined to one passage."""
FITTED = {"salience": SELECTOR, "budget": BUDGET}
"""Objectives that train parameters of their own, and how the names of these begin; the others train all the rest."""
TRIES = 500
"""Micro-batches without anything to learn from in a row after which there is nothing."""
CHECKS = {"salience": check_selector, "budget": check_budget}
FREE = ("learning_rate", "steps", "clip", "checkpoint_minutes")
"""Settings that may be others when a run goes on."""
LOGGED = ("loss", "recall", "distil")
"""What is smoothed and shown of `loss_of`'s log."""


@dataclass
class Progress:
    """What a listener sees after each step."""

    step: int
    steps: int
    loss: float
    """In nats per token, smoothed over the steps, as is `recall`."""
    recall: float
    learning_rate: float
    examples: int
    """Questions and texts to be quoted (qa, budget), questions (salience) or texts (lm), seen in all."""
    per_second: float
    """Of these."""
    tokens: int = 0
    """Tokens written and read in all; a teacher's are not counted."""
    extra: dict[str, float] = field(default_factory=dict)


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
    if config.future_from and method.causal:
        raise ConfigError(
            f"future_from is {config.future_from:g}, but this {method.name} encoder sees no later tokens: leave it out"
        )
    layouts = tuple(layout_of(method.backbone.tokenizer, name) for name in config.prompts)
    if config.prompts and method.reads_with_lora:
        raise ConfigError(f"{method.name} reads in its own layout; leave the prompts {', '.join(config.prompts)} out")
    _check_teacher(teacher, method, config, layouts)
    team = Team.join(method.backbone.device)
    if team.leads:
        folder.mkdir(parents=True, exist_ok=True)
    parameters = method.parameters()
    if config.objective in CHECKS:
        CHECKS[config.objective](method)
    fitted = FITTED.get(config.objective, "")
    apart = () if fitted else tuple(FITTED.values())
    live = [p for n, p in parameters.items() if p.requires_grad and n.startswith(fitted) and not n.startswith(apart)]
    names = {n: p for n, p in parameters.items() if any(p is q for q in live)}
    flat = [p for p in live if p.ndim != 2]
    groups = [
        {"params": [p for p in live if p.ndim == 2], "weight_decay": 0.0 if fitted else config.weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    start = {p: p.detach().clone() for p in live} if config.start_share else {}
    averages: dict[str, torch.Tensor] = {}
    path = folder / CHECKPOINT
    settings = _settings(config, mixture, card, start_from, teacher)
    state: dict[str, Any] = {"step": 0, "examples": 0, "tokens": 0, "seconds": 0.0, "smooth": {}}
    if path.exists():
        state |= checkpoint.restore(path, parameters, optimiser, averages)
        mixture.restore(state["data"])
        checkpoint.check_same(folder, state["config"], {k: v for k, v in settings.items() if k not in FREE})
        if state["step"] >= config.steps and (folder / "card.json").exists():
            made = Card.read(folder)
            if made.training["stages"][-1]["steps_done"] == state["step"]:  # else a kill came before it was written
                return made
    metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8") if team.leads else None
    saved = time.monotonic()
    smooth = {**dict.fromkeys(LOGGED, math.nan), **state["smooth"]}

    def save() -> None:
        state["smooth"] = {k: v for k, v in smooth.items() if not math.isnan(v)}
        noted = {**state, "data": mixture.state(), "config": settings}
        checkpoint.save(path, parameters, optimiser, noted, averages)

    while state["step"] < config.steps:
        began = time.monotonic()
        step = state["step"]
        rate = rate_at(step, config)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        sums = dict.fromkeys(("examples", "tokens", *(f"{kind}{of}" for kind in LOGGED for of in ("", "/n"))), 0.0)
        mine = team.mine(config.accumulate)
        for part in range(config.accumulate):
            batch = _draw(method, mixture, config, layouts, step, part)
            if part not in mine:
                continue
            bias = future_at(step, config)
            if config.objective == "salience":
                loss, log = salience_loss(batch, method)
            elif config.objective == "budget":
                loss, log = budget_loss(batch, method, future_bias=bias)
            else:
                weight = config.distil_weight
                loss, log = loss_of(batch, method, future_bias=bias, teacher=teacher, distil_weight=weight)
            (loss / config.accumulate).backward()
            sums["examples"] += batch.examples
            sums["tokens"] += batch.tokens
            for key, value in log.items():
                sums[key] += value
                sums[f"{key}/n"] += 1
        team.add_gradients(live)
        sums = dict(zip(sums, team.add(list(sums.values())), strict=True))
        for key in LOGGED:
            if count := sums[f"{key}/n"]:
                value = sums[key] / count
                smooth[key] = value if math.isnan(smooth[key]) else 0.95 * smooth[key] + 0.05 * value
        seen = int(sums["examples"])
        norm = float(torch.nn.utils.clip_grad_norm_(live, config.clip))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient is {norm} at step {step}; resume with a lower --learning-rate")
        optimiser.step()
        if step >= config.average_from * config.steps:
            _average(averages, names, step - math.ceil(config.average_from * config.steps) + 1)
        took = time.monotonic() - began
        state |= {"step": step + 1, "examples": state["examples"] + seen, "seconds": state["seconds"] + took}
        state["tokens"] += int(sums["tokens"])
        progress = Progress(
            step + 1,
            config.steps,
            smooth["loss"],
            smooth["recall"],
            rate,
            state["examples"],
            seen / took,
            state["tokens"],
            {"norm": norm, **({} if math.isnan(smooth["distil"]) else {"distil": smooth["distil"]})},
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
        **_plain(dataclasses.asdict(config)),
        "steps_done": state["step"],
        "examples": state["examples"],
        "tokens": state["tokens"],
        "seconds": round(state["seconds"], 1),
        "hours": round(state["seconds"] / 3600, 2),
        "data": {s.name: s.weight for s in mixture.sources},
        **({"teacher": teacher.fingerprint} if teacher else {}),
        "final_loss": round(smooth["loss"], 3) if smooth["loss"] == smooth["loss"] else None,
    }
    stages = [*card.training.get("stages", []), trained]
    card = dataclasses.replace(card, training={**card.training, "stages": stages})
    if team.leads:
        with torch.no_grad():
            for name, mean in averages.items():
                parameters[name].copy_(mean)
            for p, before in start.items():
                p.lerp_(before, config.start_share)
        adapter.save(method, card, folder)
    team.meet()  # the adapter is on disk before anyone reads it
    return card


def _check_teacher(
    teacher: Teacher | None, method: Method, config: TrainConfig, layouts: tuple[PromptLayout, ...]
) -> None:
    if (teacher is None) == bool(config.distil_weight):
        raise ConfigError(
            f"distil_weight is {config.distil_weight:g} with{'out' if teacher is None else ''} a teacher; "
            "give a teacher and a weight above 0, or neither"
        )
    if teacher:
        for name, layout in zip(config.prompts, layouts, strict=True):
            if layout.end != method.layout.end:
                raise ConfigError(
                    f"prompt {name!r} ends an answer with {layout.end!r}, the teacher with {method.layout.end!r}; "
                    "leave the prompt out"
                )


def _draw(
    method: Method, mixture: Mixture, config: TrainConfig, layouts: tuple[PromptLayout, ...], step: int, part: int
) -> Batch:
    """One micro-batch that something can be learned from.

    Every choice is drawn from (seed, step, part), so a resumed run repeats it. Raises TrainingError when none comes.
    """
    rng = random.Random(f"{config.seed}/{config.objective}/{step}/{part}")
    done = step / config.steps
    first = min(config.first_context, config.max_context)
    limit = first + (config.max_context - first) * min(1.0, 2 * done)
    shares = Shares(
        recall_weight=config.recall_weight * (1 - 0.8 * done),
        quote_weight=config.quote_weight,
        length_norm=config.length_norm,
        distractor_share=config.distractor_share if done >= config.distractors_from else 0.0,
        max_distractors=config.max_distractors,
        rank_decay=config.rank_decay,
        layouts=layouts,
        layout_share=config.prompt_share,
        mismatch_share=config.mismatch_share,
    )
    draw = functools.partial(mixture.draw, int(limit))
    for _ in range(TRIES):
        contexts, tokens = [], 0
        while tokens < config.step_tokens:
            if config.objective == "salience":
                drawn = [with_answers(draw, method.backbone)]
            else:
                near = config.near_share and rng.random() < config.near_share
                drawn = mixture.cluster(int(limit), 1 + rng.randint(1, config.near_most) if near else 1)
            for c in drawn:
                contexts.append(c)
                pairs = sorted((len(q) + len(a) + 16 for q, a in c.pairs), reverse=True)[: shares.questions]
                tokens += len(c.ids) * (1 + c.quoted) + sum(pairs)
        if config.joined_share:
            gap = method.backbone.tokens(GAP)
            contexts = _joined(contexts, config.joined_share, config.joined_texts, gap, rng)
        ratios = rng.choices(config.ratios, config.ratio_weights, k=len(contexts))
        if config.objective == "lm":
            return continuation_batch(contexts, ratios, method)
        if config.objective == "salience":
            return salience_batch(contexts, method)
        batch = question_batch(contexts, ratios, method, shares, rng)
        if any(batch.readings):
            return batch
    why = "recall_weight is 0"
    if config.recall_weight:
        least, mismatch = shares.recalled_above, config.mismatch_share
        why = f"recall takes texts of more than {least} tokens in their own memory (mismatch_share is {mismatch:g})"
    raise TrainingError(
        f"nothing to learn from: the last {TRIES} micro-batches have no questions, and {why}; write cloze: in front of "
        "their path to make questions out of them, or use --objective lm"
    )


def _average(averages: dict[str, torch.Tensor], parameters: Mapping[str, torch.Tensor], count: int) -> None:
    """Take one more step's weights into the running means, the `count`-th."""
    for name, p in parameters.items():
        if name in averages:
            averages[name].lerp_(p.detach(), 1 / count)
        else:
            averages[name] = p.detach().clone()


def _joined(
    contexts: Sequence[TokenisedContext], share: float, most: int, gap: Sequence[int], rng: random.Random
) -> list[TokenisedContext]:
    """Some contexts as one with the next, of at most so many, where that is a passage still."""
    made: list[TokenisedContext] = []
    for c in contexts:
        last = made[-1] if made else None
        if last and last.pairs and c.pairs and last.texts < most and rng.random() < share:
            both = last.joined(c, gap)
            if len(both.ids) <= MAX_PASSAGE_TOKENS:
                made[-1] = both
                continue
        made.append(c)
    return made


def _settings(
    config: TrainConfig, mixture: Mixture, card: Card, start_from: str | None, teacher: Teacher | None
) -> dict[str, Any]:
    """What a run is, and stays where it goes on but for what is FREE."""
    made = dataclasses.asdict(config) | {f"weight of {s.name}": s.weight for s in mixture.sources}
    made |= {n: getattr(card, n) for n in ("base_fingerprint", "method", "lora", "options", "layout", "placing")}
    return _plain(made | {"start_from": start_from, "teacher": teacher.fingerprint if teacher else None})


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values, as they are read back."""
    return json.loads(json.dumps(values))
