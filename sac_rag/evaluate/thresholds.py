"""Confidence as a signal: thresholds that tell answers to keep from answers to doubt, and what they bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sac_rag.answer.confidence import says_nothing
from sac_rag.evaluate.runs import Prediction, interval, resampled

BINS = 5
"""Rows of a curve."""
NEVER = float(np.finfo(np.float64).min)
"""A confidence that no answer is below, unless it says itself that there is none."""


RIGHT = 0.5
"""Token F1 from which on an answer counts as right."""
APART = 1.358
"""How far right and wrong answers must stand apart at the best of all thresholds, as shares of each below it, times
the root of (right * wrong / (right + wrong)): by luck alone 1 in 40 does, exp(-2 * 1.358 ** 2) (Smirnov 1939)."""
BEST_OF_ALL = 2.716
"""Standard errors that the gain of the best of all thresholds must have: by luck alone 1 in 40 has as many,
exp(-2.716 ** 2 / 2)."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """One reader's answers to the same questions, from their own passage and from another's; arrays (questions,).

    own, other: confidences (nats). silent_own, silent_other: whether the answer was NO_ANSWER. f1: 0..1, of the
    answers from their own passage.
    """

    own: np.ndarray
    other: np.ndarray
    silent_own: np.ndarray
    silent_other: np.ndarray
    f1: np.ndarray

    @classmethod
    def of(cls, own: Sequence[Prediction], other: Sequence[Prediction]) -> Pairs:
        """Of predictions in the same order; ValueError when they are to other questions."""
        if [p.qid for p in own] != [p.qid for p in other]:
            raise ValueError("predictions from own and from other passages must be to the same questions, in order")
        return cls(
            own=np.array([p.logprob for p in own]),
            other=np.array([p.logprob for p in other]),
            silent_own=np.array([says_nothing(p.prediction) for p in own]),
            silent_other=np.array([says_nothing(p.prediction) for p in other]),
            f1=np.array([p.f1 for p in own]),
        )

    def sure(self) -> tuple[np.ndarray, np.ndarray]:
        """Confidences that there is an answer: NO_ANSWER in the model's own words has none at all."""
        return np.where(self.silent_own, -np.inf, self.own), np.where(self.silent_other, -np.inf, self.other)

    def abstained(self, threshold: float | None) -> tuple[np.ndarray, np.ndarray]:
        """Which answers are withheld."""
        own, other = self.sure()
        limit = NEVER if threshold is None else threshold
        return own < limit, other < limit


@dataclass(frozen=True, kw_only=True)
class Abstaining:
    """What a threshold does to n questions, each asked of its own passage and of another; shares of 1.

    `_low` and `_high` are the ends of 95 % intervals (bootstrap over questions). None where nothing was counted.
    """

    reader: str
    ratio: float | None
    threshold: float | None
    n: int
    precision: float | None
    """Of the answers withheld, those from another passage (half of all are)."""
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    """Of the answers from another passage, those withheld."""
    recall_low: float | None
    recall_high: float | None
    kept: float | None
    """Of the answers from their own passage, those given."""
    kept_low: float | None
    kept_high: float | None
    f1_kept: float | None
    """F1 of those given."""
    f1_kept_low: float | None
    f1_kept_high: float | None
    f1_all: float
    """F1 from their own passage when nothing is withheld."""
    auroc: float
    """Chance that an answer from its own passage is surer than one from another."""


@dataclass(frozen=True, kw_only=True)
class Doubting:
    """What marking answers below a threshold as doubtful does to n questions, each asked of its own passage and of
    another; shares of 1.

    An answer from its own passage is right from an F1 of RIGHT on, one from another is wrong; NO_ANSWER in the model's
    own words is neither. `_low` and `_high` are as of `Abstaining`.
    """

    reader: str
    ratio: float | None
    threshold: float | None
    n: int
    wrong: float | None
    """Of the wrong answers, those marked."""
    wrong_low: float | None
    wrong_high: float | None
    right: float | None
    """Of the right answers, those marked."""
    right_low: float | None
    right_high: float | None
    marked: float | None
    """Of the marked answers from their own passage, those that are right."""
    marked_low: float | None
    marked_high: float | None
    unmarked: float | None
    """Of the others from their own passage, those that are right."""
    unmarked_low: float | None
    unmarked_high: float | None


@dataclass(frozen=True, kw_only=True)
class FallingBack:
    """What answering doubtful questions again from text does to F1 (0..1); `gain` is over memory alone."""

    ratio: float
    threshold: float | None
    n: int
    share: float
    """Questions answered again."""
    f1_memory: float
    f1_text: float
    f1_auto: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers from memory of like confidence: from `low` to `high` nats, as many in each bin."""

    ratio: float
    low: float
    high: float
    n: int
    answerable: float
    """Those from their own passage."""
    f1_memory: float | None
    """F1 of those."""
    f1_text: float | None
    """F1 of text on the same questions."""


def abstain_threshold(pairs: Pairs, precision: float | None = None) -> float | None:
    """The confidence below which to abstain; None is never.

    The one with the best F1 of telling answerable questions, the lowest of equals; or, given the precision that
    abstaining must have, the one that abstains most often with it.
    """
    sure = pairs.sure()
    limits = _candidates(np.concatenate(sure))
    own, other = (np.searchsorted(np.sort(side), limits, "left") for side in sure)
    if precision is None:
        kept_own, kept_other = pairs.own.size - own, pairs.other.size - other
        best = int(np.argmax(2 * kept_own / (kept_own + kept_other + pairs.own.size)))
    else:
        reached = np.flatnonzero(other >= precision * (own + other))
        best = int(reached[-1]) if reached.size else 0
    return float(limits[best]) if best else None


def doubt_threshold(pairs: Pairs) -> float | None:
    """The confidence that tells right answers from wrong ones best: the share of the wrong ones below it less that of
    the right ones is the largest. None, never, where luck alone may do as much."""
    spoken, right = ~pairs.silent_own, pairs.f1 >= RIGHT
    good = np.sort(pairs.own[spoken & right])
    bad = np.sort(np.concatenate((pairs.own[spoken & ~right], pairs.other[~pairs.silent_other])))
    if not (good.size and bad.size):
        return None
    limits = _candidates(np.concatenate((good, bad)))
    apart = np.searchsorted(bad, limits, "left") / bad.size - np.searchsorted(good, limits, "left") / good.size
    best = int(np.argmax(apart))
    enough = APART * ((good.size + bad.size) / (good.size * bad.size)) ** 0.5
    return float(limits[best]) if apart[best] > enough else None


def fallback_threshold(memory: Pairs, text: Pairs) -> float | None:
    """The confidence of memory below which text answers better: where F1 gains most, and for certain (97.5 %).

    None, never, when no threshold gains, or the best of them may well gain nothing. The best of many is judged as such:
    the peak of a walk without drift, over the root of its steps until then, is Rayleigh distributed.
    """
    limits, difference = _candidates(memory.own), text.f1 - memory.f1
    order = np.argsort(memory.own, kind="stable")
    gains = np.concatenate(([0.0], np.cumsum(difference[order])))
    best = int(np.argmax(gains[np.searchsorted(memory.own[order], limits, "left")]))
    if not best:
        return None
    threshold = float(limits[best])
    gain = np.where(memory.own < threshold, difference, 0.0)
    return threshold if gain.mean() > BEST_OF_ALL * gain.std() / gain.size**0.5 else None


def abstaining(pairs: Pairs, threshold: float | None, *, reader: str, ratio: float | None) -> Abstaining:
    """Measure a threshold."""
    own, other = pairs.abstained(threshold)
    table = np.stack([own, other, pairs.f1 * ~own], axis=1)
    values, draws = _shares(table.mean(0)), _shares(resampled(table, "abstaining"))
    found = _named(("precision", "recall", "kept", "f1_kept"), values, draws)
    sure, order = pairs.sure()[0], np.sort(pairs.sure()[1])
    below = np.searchsorted(order, sure, "left") + np.searchsorted(order, sure, "right")
    return Abstaining(
        reader=reader,
        ratio=ratio,
        threshold=threshold,
        n=pairs.own.size,
        f1_all=float(pairs.f1.mean()),
        auroc=float(below.mean() / (2 * order.size)),
        **found,
    )


def doubting(pairs: Pairs, threshold: float | None, *, reader: str, ratio: float | None) -> Doubting:
    """Measure a threshold of doubt."""
    limit = NEVER if threshold is None else threshold
    spoken, right, said = ~pairs.silent_own, pairs.f1 >= RIGHT, ~pairs.silent_other
    own, other = spoken & (pairs.own < limit), said & (pairs.other < limit)
    counts = (
        *((own & ~right).astype(int) + other, (spoken & ~right).astype(int) + said),
        *(own & right, spoken & right),
        *(own & right, own),
        *(spoken & ~own & right, spoken & ~own),
    )
    table = np.stack(counts, axis=1)
    values, draws = _fractions(table.mean(0)), _fractions(resampled(table, "doubting"))
    found = _named(("wrong", "right", "marked", "unmarked"), values, draws)
    return Doubting(reader=reader, ratio=ratio, threshold=threshold, n=pairs.own.size, **found)


def falling_back(memory: Pairs, text: Pairs, threshold: float | None, *, ratio: float) -> FallingBack:
    """Measure a threshold, on questions with their own passage."""
    again = memory.own < (NEVER if threshold is None else threshold)
    gain = np.where(again, text.f1 - memory.f1, 0.0)
    low, high = _ends(resampled(gain[:, None], "falling back"))
    return FallingBack(
        ratio=ratio,
        threshold=threshold,
        n=gain.size,
        share=float(again.mean()),
        f1_memory=float(memory.f1.mean()),
        f1_text=float(text.f1.mean()),
        f1_auto=float(memory.f1.mean() + gain.mean()),
        gain=float(gain.mean()),
        gain_low=float(low[0]),
        gain_high=float(high[0]),
    )


def curve(memory: Pairs, text: Pairs, *, ratio: float, bins: int = BINS) -> tuple[Bin, ...]:
    """Confidence of memory against what it says: answerability and F1, from doubtful to sure."""
    confidence = np.concatenate((memory.own, memory.other))
    rows = []
    for part in np.array_split(np.argsort(confidence, kind="stable"), bins):
        own = part[part < memory.own.size]
        if part.size:
            rows.append(
                Bin(
                    ratio=ratio,
                    low=float(confidence[part[0]]),
                    high=float(confidence[part[-1]]),
                    n=part.size,
                    answerable=own.size / part.size,
                    f1_memory=float(memory.f1[own].mean()) if own.size else None,
                    f1_text=float(text.f1[own].mean()) if own.size else None,
                )
            )
    return tuple(rows)


def _candidates(confidences: np.ndarray) -> np.ndarray:
    """Ascending thresholds: below all, between any two confidences, above all (0 nats, certainty)."""
    found = np.unique(confidences[np.isfinite(confidences)])
    return np.concatenate(([NEVER], (found[1:] + found[:-1]) / 2, [0.0]))


def _shares(means: np.ndarray) -> np.ndarray:
    """(…, own abstained, other abstained, F1 given) -> (…, precision, recall, kept, F1 of those kept); NaN for 0/0."""
    own, other, f1 = np.moveaxis(means, -1, 0)
    with np.errstate(invalid="ignore"):
        return np.stack([other / (own + other), other, 1 - own, f1 / (1 - own)], axis=-1)


def _fractions(means: np.ndarray) -> np.ndarray:
    """Of columns (part, whole, part, whole, …) the parts of their wholes; NaN for 0/0."""
    with np.errstate(invalid="ignore"):
        return means[..., ::2] / means[..., 1::2]


def _named(names: Sequence[str], values: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    """Fields of values and of the ends of their intervals; None for NaN."""
    low, high = _ends(draws)
    found: dict[str, Any] = {}
    for i, name in enumerate(names):
        ends = {name: values[i], f"{name}_low": low[i], f"{name}_high": high[i]}
        found |= {k: None if np.isnan(v) else float(v) for k, v in ends.items()}
    return found


def _ends(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of columns; draws in which nothing was counted are left out, NaN when that is all."""
    low, high = (np.full(draws.shape[1], np.nan) for _ in range(2))
    for i, column in enumerate(draws.T):
        if (known := column[~np.isnan(column)]).size:
            low[i], high[i] = interval(known)
    return low, high
