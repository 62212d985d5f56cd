"""Run readers over tasks and score them: closed book, full text, compressed memory, finetuned full text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sac_rag.answer.engine import Engine
from sac_rag.compress.templates import layout_of
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.prompts import ANSWER_TOKENS, answers_of, prompts_of
from sac_rag.evaluate.results import Origin, Results, file_sha256
from sac_rag.evaluate.runs import Prediction, Run, Scored, macro, summary, with_retention
from sac_rag.evaluate.tasks import Task, check_names, groups, load_task
from sac_rag.models.loading import choose_device, choose_dtype

READERS = ("closed", "text", "memory", "full-ft")
CLOSED_BATCH = 4
"""Closed-book prompts are short and run to the token limit: so many times more of them are decoded together."""

Listen = Callable[[str, str, int, int], None]
"""(set, reader label, questions done, questions in all)."""


def evaluate(
    files: Sequence[str],
    *,
    readers: Sequence[str] = ("memory",),
    model: str = DEFAULT_MODEL,
    method: str = "sac",
    adapter: str = "default",
    full_ft_adapter: str = "default",
    ratios: Sequence[float] = (5.0,),
    prompts: Sequence[str | None] = (None,),
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    results: Results | None = None,
    listen: Listen | None = None,
) -> list[Run]:
    """Score each reader on each file with gold contexts and greedy decoding; `memory` once per ratio.

    Several files are followed by a row that averages over them (set "macro"). prompts: named prompts to send, each a
    run of its own; None is the adapter's own layout, and full-ft knows no other. batch: questions decoded together.
    Contexts longer than 510 tokens are compressed as consecutive sub-contexts. results: runs found there are not
    computed again, new ones are stored there as they are done; a model is loaded only when something is missing.
    Raises ConfigError for an unknown reader or prompt and for files of the same name.
    """
    check_readers(readers, READERS)
    check_names(files)
    tasks = [load_task(f, limit=limit, seed=seed) for f in files]
    hashes = [file_sha256(f) if results else "" for f in files]
    number = str(choose_dtype(dtype, choose_device(device)))
    runs: list[Run] = []
    for name in readers:
        used, weights = ("full-ft", full_ft_adapter) if name == "full-ft" else (method, adapter)
        origin = Origin.of(model, used, weights).determines(name) if results else {}
        own = (None,) if name == "full-ft" else prompts
        for ratio, prompt in itertools.product(map(float, ratios) if name == "memory" else (None,), own):
            rows = []
            for task, content in zip(tasks, hashes, strict=True):
                settings = {
                    **{"track": "gold", "set": task.name, "file_sha256": content, "limit": limit, "seed": seed},
                    **settings_of(name, ratio, number, origin, prompt),
                }
                scored = results.find(Run, settings) if results else None
                if scored is None:
                    engine = Engine.shared(model, used, weights, device=device, dtype=dtype)
                    scored = score_task(engine, task, name, ratio, batch, listen, prompt=prompt)
                    if results:
                        results.keep(scored, settings)
                rows.append(scored)
            runs += with_macro(rows)
    return with_retention(runs)


def settings_of(
    reader: str, ratio: float | None, dtype: str, origin: Mapping[str, Any], prompt: str | None = None
) -> dict[str, Any]:
    """What of a stored run's settings says how questions are answered."""
    named = {"prompt": prompt} if prompt else {}
    return {"reader": reader, "ratio": ratio, "dtype": dtype, "answer_tokens": ANSWER_TOKENS, **origin, **named}


def check_readers(readers: Sequence[str], known: Sequence[str]) -> None:
    """Raises ConfigError naming a reader that is not among the known ones."""
    for name in readers:
        if name not in known:
            raise ConfigError(f"unknown reader {name!r}; use {', '.join(known)}")


def with_macro(rows: Sequence[Scored[Any]], **changes: Any) -> list[Any]:
    """The runs of several sets, and their average when there is more than one."""
    runs = [s.run for s in rows]
    return [*runs, macro(rows, **changes)] if len(rows) > 1 else runs


def score_task(
    engine: Engine,
    task: Task,
    reader: str,
    ratio: float | None,
    batch: int,
    listen: Listen | None = None,
    *,
    prompt: str | None = None,
) -> Scored[Run]:
    """Answer and score all questions of a task with one reader."""
    label = f"{engine.method_name} {ratio:g}x" if ratio else reader
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
