"""Objectives on texts without questions: to go on with one (lm), to say one again (ae)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sac_rag.compress.methods.base import Method
from sac_rag.train.batch import Batch, Row, asking
from sac_rag.train.data import TokenisedContext
from sac_rag.train.objectives.base import Reads

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
