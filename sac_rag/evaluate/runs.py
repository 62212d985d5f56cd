"""One reader on one set: its predictions, their means with intervals, and what follows from several runs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any, Generic, TypeVar

import numpy as np

from sac_rag.evaluate.metrics import score
from sac_rag.evaluate.tasks import MACRO
from sac_rag.train.data import Question

METRICS = ("f1", "em", "rouge1", "em_raw")
CEILING = "full-ft"
"""The reader that the others are compared with."""
TEXT = "text"
"""The frozen model on the text itself: the ceiling of methods that train nothing."""
RESAMPLES = 1000
COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True)
class Run:
    """Mean scores (0..1) of one reader on one set. method and ratio are None where nothing is compressed."""

    set: str
    reader: str
    method: str | None
    ratio: float | None
    n: int
    """Questions."""
    f1: float
    em: float
    rouge1: float
    em_raw: float
    seconds: float
    """Compressing and answering; loading the model is left out."""
    f1_low: float
    """Ends of the 95 % interval: percentile bootstrap over questions."""
    f1_high: float
    em_low: float
    em_high: float
    examples_per_s: float
    peak_mib: float | None = None
    """Peak memory in MiB: of the device on a GPU, else resident memory of the process."""
    cut: int = 0
    """Contexts (gold) or questions (retrieved) of which something did not fit the model's context."""
    bytes_per_source_token: float | None = None
    """Stored memory; None where nothing is stored."""
    prompt: str | None = None
    """Name of the prompt that was sent (`sac_rag.compress.templates`); None is the adapter's own layout."""
    retention: float | None = None
    """F1 over that of the ceiling on the same set; None unless that was run beside it."""
    of_text: float | None = None
    """F1 over that of the frozen model on the text of the same set, in the same prompt; None unless that was run beside
    it."""
    adapter: str | None = None
    """What the adapter is called among several of one table; None when there is one."""
    difference: float | None = None
    """F1 less that of the first adapter; None for it, and unless there are several."""
    difference_low: float | None = None
    """Ends of its 95 % interval: paired bootstrap over the same questions."""
    difference_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievedRun(Run):
    """Mean scores (0..1) over retrieved passages. recall: questions with an accepted answer in what was found."""

    passage_tokens: int
    k: int
    passages: int
    """Passages searched."""
    recall: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer with its scores (0..1)."""

    qid: str
    prediction: str
    f1: float
    em: float
    rouge1: float
    em_raw: float
    logprob: float
    """Mean log-probability of the chosen tokens, in nats."""
    found: bool | None = None
    """Retrieved track: whether an accepted answer stands in the passages."""

    @classmethod
    def of(cls, question: Question, text: str, logprob: float, found: bool | None = None) -> Prediction:
        scores = asdict(score(text, question.answers))
        return cls(qid=question.qid, prediction=text, logprob=logprob, found=found, **scores)


RunT = TypeVar("RunT", bound=Run)


@dataclass(frozen=True)
class Scored(Generic[RunT]):
    """A run with its predictions, in the order of the file."""

    run: RunT
    predictions: tuple[Prediction, ...]

    @cached_property
    def resampled(self) -> np.ndarray:
        """Means of (f1, em) over bootstrap samples of the questions, (RESAMPLES, 2)."""
        return resampled([(p.f1, p.em) for p in self.predictions], self.run.set)


def resampled(values: Any, name: str) -> np.ndarray:
    """Means of bootstrap samples, (RESAMPLES, columns), of `values` (questions, columns).

    `name` seeds the draw, so readers of one set are resampled alike and sets are independent.
    """
    table = np.asarray(values, np.float64)
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return np.stack([table[random.integers(len(table), size=len(table))].mean(0) for _ in range(RESAMPLES)])


def interval(means: np.ndarray) -> tuple[Any, Any]:
    """Ends of the percentile interval of resampled means: floats of means (resamples,), lists of (resamples,
    columns)."""
    low, high = np.quantile(means, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0).tolist()
    return low, high


def _ends(means: np.ndarray) -> dict[str, Any]:
    """The fields that hold the interval of resampled (f1, em) means."""
    low, high = interval(means)
    return {"f1_low": low[0], "f1_high": high[0], "em_low": low[1], "em_high": high[1]}


def summary(predictions: Sequence[Prediction], name: str, seconds: float) -> dict[str, Any]:
    """The fields of a Run that follow from its predictions and time."""
    return {
        "set": name,
        "n": len(predictions),
        "seconds": seconds,
        "examples_per_s": len(predictions) / seconds,
        **{m: fmean(getattr(p, m) for p in predictions) for m in METRICS},
        **_ends(resampled([(p.f1, p.em) for p in predictions], name)),
    }


def macro(scored: Sequence[Scored[RunT]], name: str = MACRO, **changes: Any) -> RunT:
    """The mean of the sets' means, each set counting alike; its interval is bootstrapped within the sets."""
    runs = [s.run for s in scored]
    n, seconds = sum(r.n for r in runs), sum(r.seconds for r in runs)
    peaks = [r.peak_mib for r in runs if r.peak_mib is not None]
    stored = [r.bytes_per_source_token for r in runs if r.bytes_per_source_token is not None]
    means: dict[str, Any] = {m: fmean(getattr(r, m) for r in runs) for m in METRICS}
    return replace(
        runs[0],
        set=name,
        n=n,
        seconds=seconds,
        examples_per_s=n / seconds,
        peak_mib=max(peaks, default=None),
        cut=sum(r.cut for r in runs),
        bytes_per_source_token=fmean(stored) if stored else None,
        **means,
        **_ends(np.mean([s.resampled for s in scored], axis=0)),
        **changes,
    )


def with_macro(
    rows: Sequence[Scored[RunT]],
    name: str = MACRO,
    first: Sequence[Scored[RunT]] | None = None,
    **changes: Any,
) -> list[RunT]:
    """The runs of several sets, and their average when there is more than one. first: what to compare with."""
    runs = [s.run for s in rows]
    together = [macro(rows, name, **changes)] if len(rows) > 1 else []
    if first:
        runs = [replace(s.run, **difference([s], [f])) for s, f in zip(rows, first, strict=True)]
        together = [replace(r, **difference(rows, first)) for r in together]
    return [*runs, *together]


def difference(scored: Sequence[Scored[Any]], first: Sequence[Scored[Any]]) -> dict[str, Any]:
    """F1 less that of others on the same sets, which count alike, with the interval of the paired difference.

    Both are resampled alike, set by set, so that what they share cancels out.
    """
    pairs = list(zip(scored, first, strict=True))
    means = np.mean([s.resampled - f.resampled for s, f in pairs], axis=0)
    low, high = interval(means)
    found = fmean(s.run.f1 - f.run.f1 for s, f in pairs)
    return {"difference": found, "difference_low": low[0], "difference_high": high[0]}


def with_shares(runs: Sequence[RunT]) -> list[RunT]:
    """The runs with their F1 as a share of the ceiling's on the same set, and of the frozen model's on its text, where
    there is one above 0."""
    ceiling = {r.set: r.f1 for r in runs if r.reader == CEILING}
    text = {(r.set, r.prompt): r.f1 for r in runs if r.reader == TEXT}

    def share(run: RunT, whole: float | None) -> float | None:
        return run.f1 / whole if whole else None

    return [
        replace(r, retention=share(r, ceiling.get(r.set)), of_text=share(r, text.get((r.set, r.prompt)))) for r in runs
    ]
