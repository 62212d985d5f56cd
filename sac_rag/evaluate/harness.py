"""Run readers over tasks and score them: closed book, full text, compressed memory, finetuned full text."""

from __future__ import annotations

import contextlib
import gc
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sac_rag.answer.engine import Engine
from sac_rag.compress.methods import METHODS
from sac_rag.compress.templates import layout_of
from sac_rag.config import DEFAULT_MODEL, check_ratio
from sac_rag.errors import ConfigError
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.jobs import Job, Variant, Work, cost_of
from sac_rag.evaluate.prompts import ANSWER_TOKENS, answers_of, prompts_of
from sac_rag.evaluate.results import Origin, Results, file_sha256
from sac_rag.evaluate.runs import Prediction, Run, Scored, summary, with_macro, with_retention
from sac_rag.evaluate.tasks import Task, check_names, grouped, groups, load_task
from sac_rag.evaluate.workers import compute, suitable
from sac_rag.models.loading import choose_device, choose_dtype

READERS = ("closed", "text", "memory", "full-ft")
STORED = ("memory", "mixed")
"""Readers of compressed memory, here and on the retrieved track: one run a ratio."""
CLOSED_BATCH = 4
"""Closed-book prompts are short and run to the token limit: so many times more of them are decoded together."""

ALL = "all"

Listen = Callable[[str, str, int, int], None]
"""(set, reader label, questions done, questions in all); set ALL for the sum over several runs."""


def evaluate(
    files: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    readers: Sequence[str] = ("memory",),
    model: str = DEFAULT_MODEL,
    method: str = "sac",
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
    ("macro NAME"). adapter: of several by name, those behind the first are compared with it; readers that compress
    nothing take the first one's layout. prompts: named prompts to send, each a run of its own; None is the adapter's
    own layout, and full-ft knows no other. batch: questions decoded together. Contexts longer than 510 tokens are
    compressed as consecutive sub-contexts. results: runs found there are not computed again, new ones are stored there
    as they are done; a model is loaded only when something is missing. workers: processes that compute runs side by
    side, each on one thread and with a model of its own; None is as many as suit the machine (`workers.suitable`).
    Raises ConfigError for an unknown reader or prompt, a reader that `method` has no memory for, a ratio out of range,
    files of the same name, and adapters that no reader takes.
    """
    check_readers(readers, READERS, method, ratios)
    paths, rows = grouped(files)
    check_names(paths)
    adapters = _named(adapter, readers)
    tasks = {file: load_task(file, limit=limit, seed=seed) for file in paths}
    work = Work(model, limit, seed, batch, device, dtype)
    variants = list(_variants(readers, method, adapters, full_ft_adapter, ratios, prompts))
    stored = results is not None or workers != 1
    hashes = {file: file_sha256(file) if stored else "" for file in paths}
    origins = {engine: Origin.of(model, *engine) for engine in {v.engine: 0 for v in variants}} if stored else {}
    plan = {v: _jobs(v, tasks, work, hashes, origins.get(v.engine)) for v in variants}
    found = {j: results.find(Run, j.settings) if results else None for jobs in plan.values() for j in jobs}
    done = {job: scored for job, scored in found.items() if scored}
    done |= _computed([job for job in found if job not in done], tasks, work, workers, results, listen)
    called, folder = next(iter(adapters.items()))
    runs: list[Run] = []
    for variant, jobs in plan.items():
        behind = variant.reader == "memory" and variant.called != called
        others = plan[replace(variant, adapter=folder, called=called)] if behind else []
        for name, part in rows.items():
            scored = with_macro([done[j] for j in jobs[part]], name, [done[j] for j in others[part]])
            runs += [replace(run, adapter=variant.called) for run in scored]
    return with_retention(runs)


def _named(adapter: str | Mapping[str, str], readers: Sequence[str]) -> dict[str | None, str]:
    """Adapters by what they are called in the table: one alone by nothing. Raises ConfigError as `evaluate` does."""
    named: dict[str | None, str] = {None: adapter} if isinstance(adapter, str) else dict(adapter.items())
    if not named:
        raise ConfigError("no adapter to read with; give at least one")
    if len(named) > 1 and "memory" not in readers:
        raise ConfigError(f"{len(named)} adapters are for the reader memory; readers are {', '.join(readers)}")
    return named if len(named) > 1 else {None: next(iter(named.values()))}


def _variants(
    readers: Sequence[str],
    method: str,
    adapters: Mapping[str | None, str],
    full_ft_adapter: str,
    ratios: Sequence[float],
    prompts: Sequence[str | None],
) -> Iterator[Variant]:
    """Readers in all the settings that are theirs, in the order of the table."""
    alone: dict[str | None, str] = {None: next(iter(adapters.values()))}
    for reader in readers:
        if reader == "full-ft":
            yield Variant(reader, "full-ft", full_ft_adapter)
            continue
        for called, folder in (adapters if reader == "memory" else alone).items():
            for ratio, prompt in itertools.product(map(float, ratios) if reader == "memory" else (None,), prompts):
                yield Variant(reader, method, folder, called, ratio, prompt)


def _jobs(
    variant: Variant, tasks: Mapping[str, Task], work: Work, hashes: Mapping[str, str], origin: Origin | None
) -> list[Job]:
    """A variant on each file. hashes and origin are known where runs are to be stored."""
    number = str(choose_dtype(work.dtype, choose_device(work.device)))
    made = origin.determines(variant.reader) if origin else {}
    same = settings_of(variant.reader, variant.ratio, number, made, variant.prompt)
    jobs = []
    for file, task in tasks.items():
        drawn = {"set": task.name, "file_sha256": hashes[file], "limit": work.limit, "seed": work.seed}
        cost = cost_of(task, variant.reader)
        jobs.append(Job(variant, file, task.questions, cost, {"track": "gold", **drawn, **same}))
    return jobs


def _computed(
    jobs: Sequence[Job],
    tasks: Mapping[str, Task],
    work: Work,
    workers: int | None,
    results: Results | None,
    listen: Listen | None,
) -> dict[Job, Scored[Run]]:
    """The runs of jobs, here or in workers; each is stored as it is done."""
    listen = _with_sum(listen, jobs) if listen and len(jobs) > 1 else listen
    count = min(suitable(len(jobs), work) if workers is None else workers, len(jobs))
    if count < 2:
        done: dict[Job, Scored[Run]] = {}
        engines = Engines(work, shared=len({job.variant.engine for job in jobs}) <= 2)
        for job in jobs:
            done[job] = run_job(job, tasks[job.file], engines.of(job.variant), work.batch, listen)
            if results:
                results.keep(done[job], job.settings)
        return done
    with contextlib.ExitStack() as stack:
        folder = results.folder if results else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = Results(folder)
        once = {made.path(job.settings): job for job in jobs}  # an adapter may have two names
        compute(list(once.values()), work, folder, count, listen)
        found = {job: made.find(Run, job.settings) for job in jobs}
    return {job: scored for job, scored in found.items() if scored}


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
        self._held: tuple[tuple[str, str], Engine] | None = None

    def of(self, variant: Variant) -> Engine:
        where: dict[str, Any] = {"device": self._work.device, "dtype": self._work.dtype}
        if self._shared:
            return Engine.shared(self._work.model, *variant.engine, **where)
        if self._held is None or self._held[0] != variant.engine:
            self._held = None
            gc.collect()
            self._held = variant.engine, Engine(self._work.model, *variant.engine, **where)
        return self._held[1]


def run_job(job: Job, task: Task, engine: Engine, batch: int, listen: Listen | None = None) -> Scored[Run]:
    """Answer and score all questions of a job."""
    v = job.variant
    return score_task(engine, task, v.reader, v.ratio, batch, listen, prompt=v.prompt, label=v.label)


def settings_of(
    reader: str, ratio: float | None, dtype: str, origin: Mapping[str, Any], prompt: str | None = None
) -> dict[str, Any]:
    """What of a stored run's settings says how questions are answered."""
    named = {"prompt": prompt} if prompt else {}
    return {"reader": reader, "ratio": ratio, "dtype": dtype, "answer_tokens": ANSWER_TOKENS, **origin, **named}


def check_readers(readers: Sequence[str], known: Sequence[str], method: str, ratios: Sequence[float]) -> None:
    """Raises ConfigError for an unknown reader, one of memory where `method` makes none, and a ratio out of range."""
    for name in readers:
        if name not in known:
            raise ConfigError(f"unknown reader {name!r}; use {', '.join(known)}")
        if name in STORED and METHODS.load(method).reads_with_lora:
            raise ConfigError(
                f"method {method!r} reads whole texts, so there is no memory for the reader {name}: score it by "
                "`sac eval --reader full-ft`"
            )
    for ratio in ratios:
        check_ratio(ratio)


def score_task(
    engine: Engine,
    task: Task,
    reader: str,
    ratio: float | None,
    batch: int,
    listen: Listen | None = None,
    *,
    prompt: str | None = None,
    label: str | None = None,
) -> Scored[Run]:
    """Answer and score all questions of a task with one reader. label: what listeners hear it called."""
    label = label or (f"{engine.method_name} {ratio:g}x" if ratio else reader)
    closed = reader == "closed"
    layout = layout_of(engine.method.backbone.tokenizer, prompt) if prompt else None
    if layout == engine.method.layout:
        layout = None
    answered: dict[int, list[Prediction]] = {}
    done = cut = stored = source = 0

    def heard(count: int) -> None:
        if listen:
            listen(task.name, label, done + count, task.questions)

    with engine.busy(), measured(engine.device) as cost:
        for group in [list(range(len(task.contexts)))] if closed else groups(task, batch):
            asked = prompts_of(engine.method, [task.contexts[i] for i in group], reader, ratio, layout)
            rows = CLOSED_BATCH * batch if closed else batch
            answers = answers_of(engine.reader, asked.prompts, rows, done=heard)
            predictions = (
                Prediction.of(q, text, logprob) for q, (text, logprob) in zip(asked.questions, answers, strict=True)
            )
            for i in group:
                answered[i] = [next(predictions) for _ in task.contexts[i][1]]
            done += len(answers)
            cut, stored, source = cut + asked.cut, stored + asked.stored_bytes, source + asked.source_tokens
    inorder = tuple(p for i in range(len(task.contexts)) for p in answered[i])
    run = Run(
        reader=reader,
        method=engine.method_name if reader in ("memory", "full-ft") else None,
        ratio=ratio,
        prompt=prompt,
        peak_mib=cost.peak_mib,
        cut=cut,
        bytes_per_source_token=stored / source if source else None,
        **summary(inorder, task.name, cost.seconds),
    )
    return Scored(run, inorder)
