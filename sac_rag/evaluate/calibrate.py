"""When to doubt an answer: questions asked of their own passage and of another's, and thresholds that follow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.answer.confidence import MEMORY, TEXT, Thresholds, key_of
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
    """Thresholds at one ratio, and what they do to the questions at hand. abstaining, doubting: a row a reader;
    fallback, curve: where memory and text are both among these."""

    ratio: float
    thresholds: Thresholds
    abstaining: tuple[Abstaining, ...]
    doubting: tuple[Doubting, ...]
    fallback: FallingBack | None
    curve: tuple[Bin, ...]


def calibrate(
    files: Sequence[str],
    *,
    readers: Sequence[str] = (MEMORY, TEXT),
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

    Every question is answered greedily by each of `readers`, as an evaluation names them, from its own passage and from
    another of its file (`mismatched`); the questions of all files count alike. precision: what abstaining must have
    (see `abstain_threshold`). limit, batch and results are as in `evaluate`, whose stored runs serve here too.
    Raises ConfigError for a method without memory, a precision or ratio out of range, files of the same name, and a
    file of one context.
    """
    readers = tuple(dict.fromkeys(readers))
    check_readers(readers, MISMATCHED, method, ratios)
    if odd := [r for r in readers if r != TEXT and r.partition("+")[0] not in (MEMORY, "adapted")]:
        raise ConfigError(f"reader {odd[0]!r} judges no answer of a library: use memory, adapted, NAME+N or text")
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
        for v in variants(readers, (method,), {None: adapter}, "", ratios)
    }
    jobs = [job for tracks in plan.values() for track in tracks for job in track]
    answers = computed(jobs, tasks, work, 1, results, listen)

    def pairs(reader: str, ratio: float | None) -> Pairs:
        own, other = ([p for job in track for p in answers[job].predictions] for track in plan[reader, ratio])
        return Pairs.of(own, other)

    done = []
    for ratio in ratios:
        found = {r: pairs(r, None if r == TEXT else ratio) for r in readers}
        both = (found[MEMORY], found[TEXT]) if {MEMORY, TEXT} <= found.keys() else None
        thresholds = given[ratio] if given else _chosen(found, both, precision)
        at = {r: None if r == TEXT else ratio for r in readers}
        rows = tuple(abstaining(p, thresholds.abstain.get(r), reader=r, ratio=at[r]) for r, p in found.items())
        marks = tuple(doubting(p, thresholds.doubt.get(r), reader=r, ratio=at[r]) for r, p in found.items())
        fallback = falling_back(*both, thresholds.fallback, ratio=ratio) if both else None
        bins = curve(*both, ratio=ratio) if both else ()
        done.append(Calibration(ratio, thresholds, rows, marks, fallback, bins))
    return done


def _chosen(found: Mapping[str, Pairs], both: tuple[Pairs, Pairs] | None, precision: float | None) -> Thresholds:
    limits = {reader: abstain_threshold(p, precision) for reader, p in found.items()}
    doubt = {reader: doubt_threshold(p) for reader, p in found.items()}
    return Thresholds(limits, fallback_threshold(*both) if both else None, doubt)


def stored(
    folder: Path, ratios: Sequence[float], readers: Sequence[str], *, model: str, adapter: str
) -> dict[float, Thresholds]:
    """The thresholds of an adapter's card; ConfigError with the remedy for a ratio or a reader without any."""
    return {float(r): Thresholds.of(folder, r, readers, model=model, adapter=adapter) for r in ratios}


def check_writable(folder: Path) -> None:
    """Raises AdapterError when a card there cannot be replaced."""
    if not os.access(folder, os.W_OK):
        raise _unwritable(folder, "permission denied")


def store(folder: Path, found: Sequence[Calibration], command: str) -> None:
    """Put thresholds into an adapter's card, with the command that found them and what it measured.

    Thresholds at other ratios and of other readers stay. Raises AdapterError when the card cannot be written.
    """
    card = Card.read(folder)
    entries = {key_of(c.ratio): _entry(card.calibration.get(key_of(c.ratio), {}), c, command) for c in found}
    try:
        dataclasses.replace(card, calibration={**card.calibration, **entries}).write(folder)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from error


def _entry(before: Mapping[str, Any], c: Calibration, command: str) -> dict[str, Any]:
    """What a card holds of one ratio: this over what it held before."""
    now, of = c.thresholds.to_mapping(), {row.reader for row in c.abstaining}
    made: dict[str, Any] = {kind: {**before.get(kind, {}), **now[kind]} for kind in ("abstain", "doubt")}
    for kind, rows in (("abstaining", c.abstaining), ("doubting", c.doubting)):
        others = [row for row in before.get(kind, []) if row["reader"] not in of]
        made[kind] = [*others, *(dataclasses.asdict(row) for row in rows)]
    if c.fallback is not None:
        made |= {"fallback": now["fallback"], "falling_back": dataclasses.asdict(c.fallback)}
    commands = before.get("commands") or dict.fromkeys(before.get("abstain", {}), before.get("command", ""))
    kept = {name: value for name, value in before.items() if name != "command"}
    return {"fallback": None, **kept, **made, "commands": {**commands, **dict.fromkeys(sorted(of), command)}}


def _unwritable(folder: Path, reason: str) -> AdapterError:
    return AdapterError(
        f"{folder / 'card.json'} cannot be written ({reason}): copy the adapter to a folder of your own and give that "
        "as --adapter, here and to `sac index`"
    )
