"""The cosine of the gradients of AE and LM, step by step, while a method is trained by the mean of both."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from sac_rag.compress.methods.base import BUDGET, SELECTOR, Method
from sac_rag.evaluate.report import thinned
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Gradients
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.fresh import fresh
from sac_rag.reproduce.work.training import CURVE, Stopped, data_of
from sac_rag.train.config import TrainConfig
from sac_rag.train.data import Mixture, Source, TokenisedContext
from sac_rag.train.objectives import OBJECTIVES, configured, fields_of
from sac_rag.train.objectives.base import Objective
from sac_rag.train.specs import sources_of

LM, AE = "lm", "ae"
LATE = 5
"""The last one in so many steps is what is told in one figure."""


def compute(
    spec: Gradients, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Cosine and both losses by step. The first half of a text is said again, the second half continued."""
    model, tokenizer = place.base(spec.model)
    method = fresh(system_of(spec.system), model, tokenizer, spec.lora)
    objectives = {name: _objective(name, spec, method) for name in (LM, AE)}
    config = objectives[LM].config
    mixture = Mixture([_source(path, w, method, config) for path, w in sources_of(data_of(spec.data, place))])
    live = trained(method)
    optimiser = torch.optim.AdamW(live, lr=config.learning_rate, betas=config.betas, weight_decay=0.0)
    rows: list[dict[str, float]] = []
    for step in range(config.steps):
        if stop():
            raise Stopped
        found = gradients(objectives, _drawn(mixture, config, step), live, step)
        (lm, lm_loss), (ae, ae_loss) = found[LM], found[AE]
        rows.append({"step": step + 1, "cosine": cosine(lm, ae), "lm": lm_loss, "ae": ae_loss})
        for p, a, b in zip(live, lm, ae, strict=True):
            p.grad = (a + b) / 2
        torch.nn.utils.clip_grad_norm_(live, config.clip)
        for group in optimiser.param_groups:
            group["lr"] = config.rate(step)
        optimiser.step()
        listen(step + 1, config.steps)
    late = rows[-max(1, len(rows) // LATE) :]
    return {
        "rows": thinned(rows, CURVE),
        "first_cosine": rows[0]["cosine"],
        "late_cosine": fmean(r["cosine"] for r in late),
    }


def trained(method: Method) -> list[torch.nn.Parameter]:
    """The parameters that both objectives train."""
    apart = (SELECTOR, BUDGET)
    return [p for name, p in method.parameters().items() if p.requires_grad and not name.startswith(apart)]


def gradients(
    objectives: dict[str, Objective], contexts: list[TokenisedContext], live: list[torch.nn.Parameter], step: int
) -> dict[str, tuple[list[torch.Tensor], float]]:
    """Each objective's gradients of `live`, zeros where it does not reach, and its loss."""
    halves = [dataclasses.replace(c, ids=c.ids[: len(c.ids) // 2]) for c in contexts]
    found = {}
    for name, objective in objectives.items():
        batch = objective.batch(halves if name == AE else contexts, step, random.Random(step))
        assert batch is not None, "texts always teach these objectives"
        loss, log = objective.loss(batch, step)
        grads = torch.autograd.grad(loss, live, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(live, grads, strict=True)]
        found[name] = filled, log["loss"]
    return found


def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Of two gradients, as one vector each; 0 where one of them is nothing."""
    dot, norms = sum(float((x * y).sum()) for x, y in zip(a, b, strict=True)), [
        sum(float((x * x).sum()) for x in g) ** 0.5 for g in (a, b)
    ]
    return dot / (norms[0] * norms[1]) if all(norms) else 0.0


def _objective(name: str, spec: Gradients, method: Method) -> Objective:
    known = fields_of(name)
    config = configured(name, **{key: value for key, value in spec.settings if key in known})
    objective: Objective = OBJECTIVES.load(name)(config, method)
    return objective


def _source(path: str, weight: float, method: Method, config: TrainConfig) -> Source:
    return Source(path, method.backbone.tokens, weight=weight, seed=config.seed, plain=True)


def _drawn(mixture: Mixture, config: TrainConfig, step: int) -> list[TokenisedContext]:
    """Texts of about `step_tokens` tokens."""
    contexts: list[TokenisedContext] = []
    while sum(len(c.ids) for c in contexts) < config.step_tokens:
        contexts.append(mixture.draw(config.longest(step)))
    return contexts
