"""Objectives on texts without questions: to go on with one (lm), to say one again (ae), or both (ae+lm)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sac_rag.compress.methods.base import BUDGET, SELECTOR, Method
from sac_rag.errors import ConfigError
from sac_rag.train.batch import Batch, Row, asking, token_losses
from sac_rag.train.data import TokenisedContext
from sac_rag.train.objectives.base import Loss, ReadingSettings, Reads

CUE = 8
"""Tokens that are quoted for the model to go on from."""
QUOTED = 48
"""Tokens that are said of each piece of a text to be quoted."""


class Continuation(Reads):
    """LM pretraining: a text is continued behind the memory of its first half (SAC, section 3.4)."""

    plain = True

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch:
        return continuation_batch(contexts, self.ratios(len(contexts), rng), self.method)


class Autoencoding(Reads):
    """A text is said again out of its memory (ICAE, section 2.1), but from anywhere in it: nearly every token is
    scored, in pieces that their first tokens ask for."""

    plain = True

    def size(self, context: TokenisedContext) -> int:
        return 2 * len(context.ids)

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch:
        ask, batch = asking(self.method.backbone, self.method.layout), Batch()
        for i, (c, ratio) in enumerate(zip(contexts, self.ratios(len(contexts), rng), strict=True)):
            batch.add(self.method.pieces(c.ids), ratio, [i], quotes(ask, c.ids, rng))
            batch.layouts.append(None)
            batch.examples += 1
        return batch


@dataclass(frozen=True)
class BothSettings(ReadingSettings):
    """Texts said again and continued (ae+lm)"""

    cosine_every: int = 10
    """Steps from one measurement of the angle between both gradients to the next; each costs two passes more through
    a micro-batch. 0 measures none."""

    def check(self, steps: int) -> None:
        super().check(steps)
        if self.cosine_every < 0:
            raise ConfigError(f"cosine_every is {self.cosine_every}; give a number of steps, or 0 for never")


class Both(Reads):
    """The first half of each text is said again and the second continued, behind one memory: the unweighted mean of
    both losses, as rivals of SAC are pretrained (section 4.1).

    Recorded are the continuation ("loss"), what is said again ("recall"), and "cosine": that of the angle between
    their gradients (figure 9), over all that is trained, of single micro-batches.
    """

    Settings = BothSettings
    plain = True
    records = ("loss", "recall", "cosine")
    own: BothSettings

    def size(self, context: TokenisedContext) -> int:
        return 2 * len(context.ids)

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch | None:
        """None where no first half is long enough to be said again."""
        batch = continuation_batch(contexts, self.ratios(len(contexts), rng), self.method)
        ask = asking(self.method.backbone, self.method.layout)
        for c, rows in zip(contexts, batch.readings, strict=True):
            rows += [row._replace(recall=True) for row in quotes(ask, c.ids[: len(c.ids) // 2], rng)]
        return batch if any(row.recall for row in batch.rows) else None

    def loss(self, batch: Batch, step: int) -> Loss:
        lost, recall = token_losses(batch, self.method, future_bias=self.own.future(step))
        lm, ae = lost[~recall].mean(), lost[recall].mean()
        log = {"loss": float(lm.detach()), "recall": float(ae.detach())}
        if self.own.cosine_every and step % self.own.cosine_every == 0:
            log["cosine"] = self._cosine(ae, lm)
        return (ae + lm) / 2, log

    def _cosine(self, one: torch.Tensor, other: torch.Tensor) -> float:
        """Of the angle between the gradients of two losses."""
        named = self.method.parameters().items()
        live = [p for n, p in named if p.requires_grad and not n.startswith((SELECTOR, BUDGET))]
        mine, its = (
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, live, retain_graph=True, materialize_grads=True)])
            for loss in (one, other)
        )
        return float(torch.cosine_similarity(mine, its, dim=0))


def continuation_batch(contexts: Sequence[TokenisedContext], ratios: Sequence[float], method: Method) -> Batch:
    """The encoder reads the first half of each text; every token of the second is scored."""
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        half = len(c.ids) // 2
        batch.add(method.pieces(c.ids[:half]), ratio, [i], [Row(list(c.ids[half:]), 1)])
        batch.layouts.append(None)
        batch.examples += 1
    return batch


def quote(ask: Callable[[Sequence[int]], list[int]], piece: Sequence[int]) -> Row:
    """The start of a piece of the context in a question's place, the rest to be said."""
    head = ask(piece[:CUE])
    return Row([*head, *piece[CUE:]], len(head))


def quotes(ask: Callable[[Sequence[int]], list[int]], ids: Sequence[int], rng: random.Random) -> list[Row]:
    """Nearly all of a text, in pieces that begin anywhere."""
    step, last = CUE + QUOTED, len(ids) - 2 * CUE
    return [quote(ask, ids[at : at + step]) for at in range(rng.randrange(max(1, min(step, last))), last + 1, step)]
