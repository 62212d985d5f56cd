"""Run readers over tasks and score them: closed book, full text, compressed memory, finetuned full text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from sac_rag.answer.assemble import question_ids
from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Prompt, Reader, Sampling, decode
from sac_rag.compress.methods.base import Method
from sac_rag.config import DEFAULT_MODEL, MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError
from sac_rag.evaluate.metrics import Score, score
from sac_rag.evaluate.tasks import Task, batches, load_task
from sac_rag.train.data import Question

READERS = ("closed", "text", "memory", "full-ft")
ANSWER_TOKENS = 32
"""Longest answer generated in an evaluation; extractive answers are far shorter."""


@dataclass(frozen=True)
class Run:
    """Mean scores (0..1) of one reader on one set. method and ratio are None where nothing is compressed."""

    set: str
    reader: str
    method: str | None
    ratio: float | None
    n: int
    f1: float
    em: float
    rouge1: float
    em_raw: float
    seconds: float


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
    limit: int | None = None,
    seed: int = 0,
    batch: int = 32,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listen | None = None,
) -> list[Run]:
    """Score each reader on each file with gold contexts and greedy decoding; `memory` once per ratio.

    batch: questions decoded together. Contexts longer than 510 tokens are compressed as consecutive
    sub-contexts. Raises ConfigError for an unknown reader.
    """
    for name in readers:
        if name not in READERS:
            raise ConfigError(f"unknown reader {name!r}; use {', '.join(READERS)}")
    tasks = [load_task(f, limit=limit, seed=seed) for f in files]
    runs = []
    for name in readers:
        used = "full-ft" if name == "full-ft" else method
        weights = full_ft_adapter if name == "full-ft" else adapter
        engine = Engine.shared(model, used, weights, device=device, dtype=dtype)
        for ratio in ratios if name == "memory" else (None,):
            label = f"{used} {ratio:g}x" if ratio else name
            for task in tasks:
                runs.append(_run(engine, task, name, label, ratio, batch, listen))
    return runs


def _run(
    engine: Engine, task: Task, name: str, label: str, ratio: float | None, batch: int, listen: Listen | None
) -> Run:
    began, scores = time.perf_counter(), list[Score]()
    with engine.busy():
        for group in batches(task, batch):
            prompts, questions = prompts_of(engine.method, group, name, ratio)
            for question, text in zip(questions, answers_of(engine.reader, prompts, batch), strict=True):
                scores.append(score(text, question.answers))
            if listen:
                listen(task.name, label, len(scores), task.questions)
    return Run(
        set=task.name,
        reader=name,
        method=engine.method_name if name in ("memory", "full-ft") else None,
        ratio=ratio,
        n=len(scores),
        f1=fmean(s.f1 for s in scores),
        em=fmean(s.em for s in scores),
        rouge1=fmean(s.rouge1 for s in scores),
        em_raw=fmean(s.em_raw for s in scores),
        seconds=time.perf_counter() - began,
    )


def prompts_of(
    method: Method,
    group: Sequence[tuple[str, tuple[Question, ...]]],
    reader: str,
    ratio: float | None,
) -> tuple[list[Prompt], list[Question]]:
    """Prompts of all questions of some contexts, and those questions, in order; each context is encoded once."""
    backbone = method.backbone
    prompts: list[Prompt] = []
    questions: list[Question] = []
    ids = [backbone.tokens(context) for context, _ in group]
    memories = {}
    if reader in ("memory", "full-ft"):
        step = MAX_PASSAGE_TOKENS if reader == "memory" else backbone.context_length
        cuts = [[c[i : i + step] for i in range(0, len(c), step)] for c in ids]
        flat = iter(method.compress([chunk for chunks in cuts for chunk in chunks], ratio or 1.0))
        with torch.inference_mode():
            memories = {i: method.memory([next(flat) for _ in chunks]) for i, chunks in enumerate(cuts)}
    prefix = backbone.template(method.layout.prefix)
    for i, (_, qas) in enumerate(group):
        for qa in qas:
            tail = question_ids(method, qa.question)
            front = [] if i in memories else [*prefix, *(ids[i] if reader == "text" else [])]
            prompts.append(Prompt([*front, *tail], memories.get(i)))
            questions.append(qa)
    return prompts, questions


def answers_of(reader: Reader, prompts: Sequence[Prompt], batch: int) -> list[str]:
    """Greedy answers of all prompts, in order, decoded in batches of at most `batch`."""
    sampling, texts = Sampling(max_new_tokens=ANSWER_TOKENS), list[str]()
    for start in range(0, len(prompts), batch):
        for c in reader.generate(prompts[start : start + batch], sampling):
            texts.append(decode(reader.backbone.tokenizer, c.token_ids).strip())
    return texts
