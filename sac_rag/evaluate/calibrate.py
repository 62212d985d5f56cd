"""When to doubt an answer: questions asked of their own passage and of another's, and thresholds that follow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.answer.confidence import Thresholds, key_of
from sac_rag.compress.adapter import Card
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.evaluate.harness import computed
from sac_rag.evaluate.jobs import Planner, Work, variants
from sac_rag.evaluate.readers import GOLD, MISMATCHED, check_readers, ratios_of
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.sources import Listen, mismatched
from sac_rag.evaluate.tasks import check_names, load_task
from sac_rag.evaluate.thresholds import (
    Abstaining,
    Bin,
    Doubting,
    FallingBack,
    Pairs,
    abstain_threshold,
    abstaining,
    curve,
    doubt_threshold,
    doubting,
    fallback_threshold,
    falling_back,
)


@dataclass(frozen=True)
class Calibration:
    """Thresholds at one ratio, and what they do to the questions at hand. abstaining, doubting: by reader, memory and
    text."""

    ratio: float
    thresholds: Thresholds
    abstaining: tuple[Abstaining, ...]
    doubting: tuple[Doubting, ...]
    fallback: FallingBack
    curve: tuple[Bin, ...]


def calibrate(
    files: Sequence[str],
    *,
    given: Mapping[float, Thresholds] | None = None,
    precision: float | None = None,
    model: str = DEFAULT_MODEL,
    method: str = "sac",
    adapter: str = "default",
    ratios: Sequence[float] = (5.0,),
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    results: Results | None = None,
    listen: Listen | None = None,
) -> list[Calibration]:
    """Choose thresholds for each ratio on the questions of these files, or measure `given` ones on them.

    Every question is answered greedily from its own passage and from another of its file (`mismatched`), both as
    memory and as text; the questions of all files count alike. precision: what abstaining must have (see
    `abstain_threshold`). limit, batch and results are as in `evaluate`, whose stored runs serve here too.
    Raises ConfigError for a method without memory, a precision or ratio out of range, files of the same name, and a
    file of one context.
    """
    check_readers(("memory", "text"), MISMATCHED, method, ratios)
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"precision is {precision}; it must lie above 0 and be at most 1")
    ratios = ratios_of(method, ratios)
    check_names(files)
    tasks = {file: load_task(file, limit=limit, seed=seed) for file in files}
    for task in tasks.values():
        mismatched(task, seed)  # a file of one context is refused before anything is answered
    work = Work(model, limit, seed, batch, device, dtype)
    planner = Planner(work, stored=results is not None)
    plan = {
        (v.reader, v.ratio): [
            [planner.given(v, file, task, track) for file, task in tasks.items()] for track in (GOLD, MISMATCHED)
        ]
        for v in variants(("text", "memory"), (method,), {None: adapter}, "", ratios)
    }
    jobs = [job for tracks in plan.values() for track in tracks for job in track]
    answers = computed(jobs, tasks, work, 1, results, listen)

    def pairs(reader: str, ratio: float | None) -> Pairs:
        own, other = ([p for job in track for p in answers[job].predictions] for track in plan[reader, ratio])
        return Pairs.of(own, other)

    text, done = pairs("text", None), []
    for ratio in ratios:
        memory = pairs("memory", ratio)
        if given:
            thresholds = given[ratio]
        else:
            limits = {"memory": abstain_threshold(memory, precision), "text": abstain_threshold(text, precision)}
            doubt = {"memory": doubt_threshold(memory), "text": doubt_threshold(text)}
            thresholds = Thresholds(limits, fallback_threshold(memory, text), doubt)
        rows = (
            abstaining(memory, thresholds.abstain["memory"], reader="memory", ratio=ratio),
            abstaining(text, thresholds.abstain["text"], reader="text", ratio=None),
        )
        marks = (
            doubting(memory, thresholds.doubt.get("memory"), reader="memory", ratio=ratio),
            doubting(text, thresholds.doubt.get("text"), reader="text", ratio=None),
        )
        fallback = falling_back(memory, text, thresholds.fallback, ratio=ratio)
        done.append(Calibration(ratio, thresholds, rows, marks, fallback, curve(memory, text, ratio=ratio)))
    return done


def stored(folder: Path, ratios: Sequence[float], *, model: str, adapter: str) -> dict[float, Thresholds]:
    """The thresholds of an adapter's card; ConfigError with the remedy for a ratio without any."""
    return {float(r): Thresholds.of(folder, r, model=model, adapter=adapter) for r in ratios}


def check_writable(folder: Path) -> None:
    """Raises AdapterError when a card there cannot be replaced."""
    if not os.access(folder, os.W_OK):
        raise _unwritable(folder, "permission denied")


def store(folder: Path, found: Sequence[Calibration], command: str) -> None:
    """Put thresholds into an adapter's card, with the command that found them and what it measured.

    Thresholds at other ratios stay. Raises AdapterError when the card cannot be written.
    """
    entries: dict[str, Any] = {
        key_of(c.ratio): {
            **c.thresholds.to_mapping(),
            "command": command,
            "abstaining": [dataclasses.asdict(a) for a in c.abstaining],
            "doubting": [dataclasses.asdict(d) for d in c.doubting],
            "falling_back": dataclasses.asdict(c.fallback),
        }
        for c in found
    }
    card = Card.read(folder)
    try:
        dataclasses.replace(card, calibration={**card.calibration, **entries}).write(folder)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error


def _unwritable(folder: Path, reason: str) -> AdapterError:
    return AdapterError(
        f"{folder / 'card.json'} cannot be written ({reason}): copy the adapter to a folder of your own and give that "
        "as --adapter, here and to `sac index`"
    )
