"""The retrieved-context track: every context of a file in one library, each question answered from what is found."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sac_rag.config import AskConfig, IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate.harness import ANSWER_TOKENS, Listen
from sac_rag.evaluate.metrics import Score, contains, score
from sac_rag.evaluate.tasks import load_task
from sac_rag.pipeline import SacRag
from sac_rag.records import Document, Hit
from sac_rag.train.data import Question, read_contexts

PUT_TOGETHER = 16
"""Contexts committed together."""


@dataclass(frozen=True)
class RetrievedRun:
    """Mean scores (0..1) over retrieved passages. recall: questions with an accepted answer in what was found."""

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
    passage_tokens: int
    k: int
    passages: int
    recall: float


def evaluate_retrieved(
    files: Sequence[str],
    *,
    config: IndexConfig | None = None,
    ask: AskConfig | None = None,
    readers: Sequence[str] = ("memory", "text"),
    limit: int | None = None,
    contexts: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listen | None = None,
) -> list[RetrievedRun]:
    """Index all contexts of each file (the first `contexts`, if given) and answer `limit` of their questions.

    Both readers get the same passages. Raises ConfigError for a reader other than memory and text.
    """
    config, ask = config or IndexConfig(), ask or AskConfig(max_new_tokens=ANSWER_TOKENS)
    if bad := [r for r in readers if r not in ("memory", "text")]:
        raise ConfigError(f"reader {bad[0]!r} cannot answer from retrieved passages; use memory or text")
    runs: list[RetrievedRun] = []
    for file in files:
        with (
            tempfile.TemporaryDirectory() as folder,
            SacRag.index([], Path(folder) / "eval.lib", config, device=device, dtype=dtype) as rag,
        ):
            pool = [c for c in read_contexts(file) if c.questions][:contexts]
            uris = {c.text: f"context-{i}" for i, c in enumerate(pool)}
            documents = [Document(uri, text) for text, uri in uris.items()]
            for i in range(0, len(documents), PUT_TOGETHER):
                rag.put(documents[i : i + PUT_TOGETHER])
                if listen:
                    listen(Path(file).name, "indexing", min(i + PUT_TOGETHER, len(documents)), len(documents))
            task = load_task(file, limit=limit, seed=seed, first=contexts)
            runs += _answer(rag, task.name, [q for _, qs in task.contexts for q in qs], ask, readers, listen)
    return runs


def _answer(
    rag: SacRag, name: str, questions: Sequence[Question], ask: AskConfig, readers: Sequence[str], listen: Listen | None
) -> list[RetrievedRun]:
    found: list[list[Hit]] = [rag.retrieve(q.question, ask) for q in questions]
    recall = fmean(_holds(hits, q.answers) for hits, q in zip(found, questions, strict=True))
    runs = []
    for reader in readers:
        began, scores = time.perf_counter(), list[Score]()
        for hits, q in zip(found, questions, strict=True):
            answer = rag.ask(q.question, ask, hits=hits, text=reader == "text")
            scores.append(score(answer.text, q.answers))
            if listen and len(scores) % 10 == 0:
                listen(name, reader, len(scores), len(questions))
        runs.append(
            RetrievedRun(
                set=name,
                reader=reader,
                method=rag.config.method if reader == "memory" else None,
                ratio=rag.config.ratio if reader == "memory" else None,
                n=len(scores),
                f1=fmean(s.f1 for s in scores),
                em=fmean(s.em for s in scores),
                rouge1=fmean(s.rouge1 for s in scores),
                em_raw=fmean(s.em_raw for s in scores),
                seconds=time.perf_counter() - began,
                passage_tokens=rag.config.passage_tokens,
                k=ask.k,
                passages=rag.stats().passages,
                recall=recall,
            )
        )
    return runs


def _holds(hits: Sequence[Hit], answers: Sequence[str]) -> bool:
    return any(contains(h.passage.text, answers) for h in hits)
