"""Fitting the selector: which tokens of a passage do its questions ask for?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.methods.base import SELECTOR, Method
from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train.batch import Batch
from sac_rag.train.config import TrainConfig
from sac_rag.train.data import Mixture, TokenisedContext
from sac_rag.train.objectives.base import Loss, Objective
from sac_rag.train.teacher import Teacher

LONGEST = 12
"""Tokens of an answer, at most: longer ones are sentences, of which every word is asked for."""
OFTEN = 2
"""An answer that stands in more places than this says little about where it was found."""
TRIES = 500
"""Contexts without answers in a row, at most."""


def check_selector(method: Method) -> None:
    """Raises ConfigError for a method whose anchors are not learned."""
    if method.selector is None or not method.selector.learned:
        raise ConfigError(
            f"objective salience fits a selector, and this {method.name} adapter has none to fit; "
            "train a new one with --option selector=salient"
        )


def with_answers(draw: Callable[[], TokenisedContext], backbone: Backbone) -> TokenisedContext:
    """The next context drawn that holds answers of its own; raises TrainingError when none comes."""
    for _ in range(TRIES):
        context = draw()
        if any(places_of(answer, context.ids, backbone) for _, answer in context.pairs):
            return context
    raise TrainingError(
        f"no answer stands in the last {TRIES} texts; the selector learns from questions whose answers are quoted"
    )


def salience_batch(contexts: Sequence[TokenisedContext], method: Method) -> Batch:
    """Contexts with the places of their answers."""
    batch = Batch()
    for c in contexts:
        batch.chunks.append(c.ids)
        batch.asked.append(asked_of(c, method.backbone))
        batch.examples += len(c.pairs)
    return batch


def asked_of(context: TokenisedContext, backbone: Backbone) -> list[int]:
    """Ascending positions that the questions of a context ask for, as far as they are found."""
    return sorted({place for _, answer in context.pairs for place in places_of(answer, context.ids, backbone)})


def places_of(answer: Sequence[int], ids: Sequence[int], backbone: Backbone) -> list[int]:
    """Positions of an answer's tokens in a context, within a sentence or at its beginning; [] when it is too long, or
    found nowhere or too often."""
    within = backbone.tokens(" " + backbone.tokenizer.decode(list(answer)))
    for part in (within, list(answer)):
        starts = _found(part, ids)
        if starts and len(starts) <= OFTEN and len(part) <= LONGEST:
            return [place for start in starts for place in range(start, start + len(part))]
    return []


def _found(part: list[int], ids: Sequence[int]) -> list[int]:
    n = len(part)
    return [i for i in range(len(ids) - n + 1) if ids[i] == part[0] and list(ids[i : i + n]) == part] if n else []


def salience_loss(batch: Batch, method: Method) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean binary cross-entropy (nats) over all tokens: is it part of an answer?"""
    assert method.selector is not None, "checked by `check_selector`"
    scores = torch.cat([method.selector.scores(ids) for ids in batch.chunks])
    wanted = torch.zeros_like(scores)
    start = 0
    for ids, asked in zip(batch.chunks, batch.asked, strict=True):
        wanted[torch.tensor(asked, dtype=torch.int64) + start] = 1.0
        start += len(ids)
    loss = F.binary_cross_entropy_with_logits(scores, wanted)
    return loss, {"loss": float(loss.detach())}


class Salience(Objective):
    """Each token of a text is scored: is it asked for?"""

    owns = SELECTOR
    runs_model = False

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        super().__init__(config, method, teacher)
        check_selector(method)

    def contexts(self, mixture: Mixture, longest: int, rng: random.Random) -> list[TokenisedContext]:
        return [with_answers(lambda: mixture.draw(longest), self.method.backbone)]

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch:
        return salience_batch(contexts, self.method)

    def loss(self, batch: Batch, step: int) -> Loss:
        return salience_loss(batch, self.method)
