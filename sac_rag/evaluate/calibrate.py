"""When to doubt an answer: questions asked of their own passage and of another's, and thresholds that follow."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.answer.confidence import Thresholds, key_of
from sac_rag.answer.engine import Engine
from sac_rag.compress.adapter import Card
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.evaluate.harness import READERS, Listen, check_readers, score_task, settings_of
from sac_rag.evaluate.metrics import contains
from sac_rag.evaluate.results import Origin, Results, file_sha256
from sac_rag.evaluate.runs import Prediction, Run
from sac_rag.evaluate.tasks import Task, check_names, load_task
from sac_rag.evaluate.thresholds import (
    Abstaining,
    Bin,
    FallingBack,
    Pairs,
    abstain_threshold,
    abstaining,
    curve,
    fallback_threshold,
    falling_back,
)
from sac_rag.models.loading import choose_device, choose_dtype

TRIES = 16
"""Contexts looked at for one that does not hold an accepted answer of another's questions."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds at one ratio, and what they do to the questions at hand. abstaining: by reader, memory and text."""

    ratio: float
    thresholds: Thresholds
    abstaining: tuple[Abstaining, ...]
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
    check_readers(("memory", "text"), READERS, method, ratios)
    if precision is not None and not 0 < precision <= 1:
        raise ConfigError(f"precision is {precision}; it must lie above 0 and be at most 1")
    check_names(files)
    own = [load_task(f, limit=limit, seed=seed) for f in files]
    other = [mismatched(task, seed) for task in own]
    hashes = [file_sha256(f) if results else "" for f in files]
    origin = Origin.of(model, method, adapter) if results else None
    number = str(choose_dtype(dtype, choose_device(device)))

    def answers(reader: str, ratio: float | None, track: str) -> list[Prediction]:
        found: list[Prediction] = []
        for task, asked, content in zip(own, own if track == "gold" else other, hashes, strict=True):
            settings = {
                **{"track": track, "set": task.name, "file_sha256": content, "limit": limit, "seed": seed},
                **settings_of(reader, ratio, number, origin.determines(reader) if origin else {}),
            }
            scored = results.find(Run, settings) if results else None
            if scored is None:
                engine = Engine.shared(model, method, adapter, device=device, dtype=dtype)
                scored = score_task(engine, asked, reader, ratio, batch, listen)
                if results:
                    results.keep(scored, settings)
            found += scored.predictions
        return found

    def pairs(reader: str, ratio: float | None) -> Pairs:
        return Pairs.of(answers(reader, ratio, "gold"), answers(reader, ratio, "mismatched"))

    text, done = pairs("text", None), []
    for ratio in map(float, ratios):
        memory = pairs("memory", ratio)
        if given:
            thresholds = given[ratio]
        else:
            limits = {"memory": abstain_threshold(memory, precision), "text": abstain_threshold(text, precision)}
            thresholds = Thresholds(limits, fallback_threshold(memory, text))
        rows = (
            abstaining(memory, thresholds.abstain["memory"], reader="memory", ratio=ratio),
            abstaining(text, thresholds.abstain["text"], reader="text", ratio=None),
        )
        fallback = falling_back(memory, text, thresholds.fallback, ratio=ratio)
        done.append(Calibration(ratio, thresholds, rows, fallback, curve(memory, text, ratio=ratio)))
    return done


def mismatched(task: Task, seed: int = 0) -> Task:
    """The same questions in the same order, those of a context asked of another's text.

    Each takes the first of some drawn at random that holds no accepted answer to them; the first of all where every
    one does. Raises ConfigError when the task has one text only.
    """
    texts, draw = [text for text, _ in task.contexts], random.Random(seed)
    contexts = []
    for text, questions in task.contexts:
        others = [t for t in draw.sample(texts, min(len(texts), TRIES)) if t != text] or [t for t in texts if t != text]
        if not others:
            raise ConfigError(f"{task.name} has one context only; calibrating takes two, one to be the wrong one")
        free = (t for t in others if not any(contains(t, q.answers) for q in questions))
        contexts.append((next(free, others[0]), questions))
    return Task(f"{task.name} (other passages)", tuple(contexts))


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
