"""Whether measured systems stand in the paper's order, pair by pair, as far as the intervals of differences tell."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sac_rag.evaluate.runs import interval, resampled

AGREES, DISAGREES, OPEN = "as in the paper", "the other way round", "open"


@dataclass(frozen=True)
class Sample:
    """A measured value with its bootstrap: the mean over sets of what was scored question by question."""

    value: float
    means: np.ndarray
    """Resampled means, (resamples,); those of other systems on the same sets are drawn alike."""

    @classmethod
    def of(cls, sets: Mapping[str, Sequence[float]]) -> Sample:
        """sets: scores of questions by set; sets count alike."""
        means = [resampled([(s,) for s in scores], name)[:, 0] for name, scores in sets.items()]
        return cls(float(np.mean([np.mean(scores) for scores in sets.values()])), np.mean(means, axis=0))

    @property
    def interval(self) -> tuple[float, float]:
        return interval(self.means)


@dataclass(frozen=True)
class Pair:
    """Two systems, the better one of the paper first. difference: of our values, first less second."""

    first: str
    second: str
    paper: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Open where the interval of the difference holds 0."""
        if self.low <= 0 <= self.high:
            return OPEN
        return AGREES if self.difference > 0 else DISAGREES


def compared(paper: Mapping[str, float], ours: Mapping[str, Sample], *, less_is_better: bool = False) -> list[Pair]:
    """All pairs that both have, in the order of the paper; those that are equal there are left out."""
    sign = -1 if less_is_better else 1
    names = sorted((n for n in paper if n in ours), key=lambda n: -sign * paper[n])
    found = []
    for a, b in itertools.combinations(names, 2):
        if paper[a] != paper[b]:
            low, high = interval(sign * (ours[a].means - ours[b].means))
            found.append(Pair(a, b, paper[a] - paper[b], sign * (ours[a].value - ours[b].value), low, high))
    return found
