"""LM pretraining: a text is continued behind the memory of its first half (SAC, section 3.4)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sac_rag.compress.methods.base import Method
from sac_rag.train.batch import Batch, Row
from sac_rag.train.data import TokenisedContext
from sac_rag.train.objectives.base import ReadingSettings, Reads


class ContinuationSettings(ReadingSettings):
    """Nothing of its own."""

    objective = "lm"


class Continuation(Reads):
    """Every token of the second half is scored."""

    Settings = ContinuationSettings
    plain = True

    def batch(self, contexts: Sequence[TokenisedContext], step: int, rng: random.Random) -> Batch:
        return continuation_batch(contexts, self.ratios(len(contexts), rng), self.method)


def continuation_batch(contexts: Sequence[TokenisedContext], ratios: Sequence[float], method: Method) -> Batch:
    """The encoder reads the first half of each text, the decoder the second behind it."""
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        half = len(c.ids) // 2
        batch.add(method.pieces(c.ids[:half]), ratio, [i], [Row(list(c.ids[half:]), 1)])
        batch.layouts.append(None)
        batch.examples += 1
    return batch
