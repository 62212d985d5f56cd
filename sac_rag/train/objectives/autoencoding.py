"""Autoencoding: a text is said again out of its memory (ICAE, section 2.1), but from anywhere in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sac_rag.train.batch import Batch, Row, asking
from sac_rag.train.data import TokenisedContext
from sac_rag.train.objectives.base import ReadingSettings, Reads

CUE = 8
"""Tokens that are quoted for the model to go on from."""
QUOTED = 48
"""Tokens that are said of each piece of a text to be quoted."""


class AutoencodingSettings(ReadingSettings):
    """Nothing of its own."""

    objective = "ae"


class Autoencoding(Reads):
    """Nearly every token of a text is scored, in pieces that their first tokens ask for."""

    Settings = AutoencodingSettings
    plain = True

    def size(self, context: TokenisedContext) -> int:
        return 2 * len(context.ids)

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch:
        batch, method = Batch(), self.method
        ask = asking(method.backbone, method.layout)
        for i, (c, ratio) in enumerate(zip(contexts, self.ratios(len(contexts), rng), strict=True)):
            batch.add(method.pieces(c.ids), ratio, [i], quotes(ask, c.ids, rng))
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
