"""Run readers over tasks and score them: closed book, full text, compressed memory, finetuned full text."""

from __future__ import annotations

import contextlib
import functools
import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sac_rag.answer.engine import Engine
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError
from sac_rag.evaluate.jobs import EngineOf, Job, Planner, Variant, Work, complete, variants
from sac_rag.evaluate.readers import GOLD, MISMATCHED, check_readers, reader_of
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.runs import Run, Scored, with_macro, with_shares
from sac_rag.evaluate.sources import Given, Listen, mismatched, score
from sac_rag.evaluate.tasks import Task, check_names, grouped, load_task
from sac_rag.evaluate.workers import compute, suitable

ALL = "all"
"""Set that listeners hear for the sum over several runs."""


def evaluate(
    files: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    readers: Sequence[str] = ("memory",),
    model: str = DEFAULT_MODEL,
    method: str | Sequence[str] = "sac",
    option: Sequence[str] = (),
    adapter: str | Mapping[str, str] = "default",
    full_ft_adapter: str = "default",
    ratios: Sequence[float] = (5.0,),
    prompts: Sequence[str | None] = (None,),
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    workers: int | None = 1,
    device: str = "auto",
    dtype: str = "auto",
    results: Results | None = None,
    listen: Listen | None = None,
) -> list[Run]:
    """Score each reader on each file with gold contexts and greedy decoding; `memory` once per adapter and ratio.

    Several files are followed by a row that averages over them (set "macro"), groups of files by name each by its own
    ("macro NAME"). method: several stand below each other, those that have nothing to train without an adapter. option:
    as of `IndexConfig`, of one method. adapter: of several by name, those behind the first are compared with it;
    readers that compress nothing take the first one's layout. prompts: named prompts to send, each a run of its own;
    None is the adapter's own layout, and full-ft knows no other. batch: questions decoded together. Contexts longer
    than 510 tokens are compressed as consecutive sub-contexts. results: runs found there are not computed again, new
    ones are stored there as they are done; a model is loaded only when something is missing. workers: processes that
    compute runs side by side, each on one thread and with a model of its own; None is as many as suit the machine
    (`workers.suitable`).
    Raises ConfigError for an unknown reader or prompt, a reader that `method` has no memory for, a ratio out of range,
    files of the same name, and adapters that no reader takes.
    """
    methods = (method,) if isinstance(method, str) else tuple(method)
    if not methods or (option and len(methods) > 1):
        raise ConfigError(f"{len(methods)} methods and the options {', '.join(option) or '(none)'}: name one method")
    for name in methods:
        check_readers(readers, GOLD, name, ratios)
    paths, rows = grouped(files)
    check_names(paths)
    adapters = _named(adapter, readers)
    tasks = {file: load_task(file, limit=limit, seed=seed) for file in paths}
    work = Work(model, limit, seed, batch, device, dtype)
    planner = Planner(work, stored=results is not None or workers != 1)
    plan = {
        v: [planner.given(v, file, task, GOLD) for file, task in tasks.items()]
        for v in variants(readers, methods, adapters, full_ft_adapter, ratios, prompts, tuple(option))
    }
    done = computed([job for jobs in plan.values() for job in jobs], tasks, work, workers, results, listen)
    called, folder = next(iter(adapters.items()))
    runs: list[Run] = []
    for variant, jobs in plan.items():
        behind = variant.by.compressed and variant.called not in (None, called)
        others = plan[replace(variant, adapter=folder, called=called)] if behind else []
        for name, part in rows.items():
            scored = with_macro([done[j] for j in jobs[part]], name, [done[j] for j in others[part]])
            runs += [replace(run, adapter=variant.called) for run in scored]
    return with_shares(runs)


def _named(adapter: str | Mapping[str, str], readers: Sequence[str]) -> dict[str | None, str]:
    """Adapters by what they are called in the table: one alone by nothing. Raises ConfigError as `evaluate` does."""
    named: dict[str | None, str] = {None: adapter} if isinstance(adapter, str) else dict(adapter.items())
    if not named:
        raise ConfigError("no adapter to read with; give at least one")
    if len(named) > 1 and not any(reader_of(name).compressed for name in readers):
        raise ConfigError(f"{len(named)} adapters are for the reader memory; readers are {', '.join(readers)}")
    return named if len(named) > 1 else {None: next(iter(named.values()))}


def computed(
    jobs: Sequence[Job],
    tasks: Mapping[str, Task],
    work: Work,
    workers: int | None,
    results: Results | None,
    listen: Listen | None,
) -> dict[Job, Scored[Any]]:
    """The runs of jobs on given contexts: stored ones, and the others computed here or in workers."""
    return complete(jobs, results, functools.partial(_compute, tasks, work, workers, results, listen))


def _compute(
    tasks: Mapping[str, Task],
    work: Work,
    workers: int | None,
    results: Results | None,
    listen: Listen | None,
    jobs: Sequence[Job],
) -> Iterator[tuple[Job, Scored[Any]]]:
    listen = _with_sum(listen, jobs) if listen and len(jobs) > 1 else listen
    count = min(suitable(len(jobs), work) if workers is None else workers, len(jobs))
    if count < 2:
        engines = Engines(work, shared=len({job.variant.engine for job in jobs}) <= 2)
        for job in jobs:
            yield job, run_job(job, tasks[job.file], engines.of(job.variant), work.batch, listen)
        return
    with contextlib.ExitStack() as stack:
        folder = results.folder if results else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = Results(folder)
        once = {made.path(job.settings): job for job in jobs}  # an adapter may have two names
        compute(list(once.values()), work, folder, count, listen)
        for job in jobs:
            scored = made.find(job.run, job.settings)
            assert scored is not None, "workers store every run"
            yield job, scored


def _with_sum(listen: Listen, jobs: Sequence[Job]) -> Listen:
    """Progress of each run, and of all of them together."""
    total, heard = sum(job.questions for job in jobs), dict[tuple[str, str], int]()

    def both(name: str, label: str, done: int, of: int) -> None:
        listen(name, label, done, of)
        heard[name, label] = done
        listen(ALL, f"{len(jobs)} runs", sum(heard.values()), total)

    return both


class Engines:
    """What answers jobs. shared: engines stay loaded, also for others; else one makes room for the next."""

    def __init__(self, work: Work, *, shared: bool = False) -> None:
        self._work, self._shared = work, shared
        self._held: tuple[EngineOf, Engine] | None = None

    def of(self, variant: Variant) -> Engine:
        method, adapter, option = variant.engine
        how: dict[str, Any] = {"option": option, "device": self._work.device, "dtype": self._work.dtype}
        if self._shared:
            return Engine.shared(self._work.model, method, adapter, **how)
        if self._held is None or self._held[0] != variant.engine:
            self._held = None
            gc.collect()
            self._held = variant.engine, Engine(self._work.model, method, adapter, **how)
        return self._held[1]


def run_job(job: Job, task: Task, engine: Engine, batch: int, listen: Listen | None = None) -> Scored[Any]:
    """Answer and score all questions of a job on given contexts."""
    v = job.variant
    if job.settings["track"] == MISMATCHED:
        task = mismatched(task, job.settings["seed"])
    return score(Given(task, v.ratio, v.prompt), engine, v.by, batch, v.label, listen)
