"""A reader's answers to the questions of a file, with all scores of each question, for intervals of differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sac_rag.answer.reader import Sampling
from sac_rag.compress.backbone import Backbone
from sac_rag.evaluate.readers import reader_of
from sac_rag.evaluate.runs import METRICS
from sac_rag.evaluate.sources import Given, score
from sac_rag.evaluate.tasks import Task, load_task
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Score


def compute(spec: Score, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]) -> dict[str, Any]:
    """The run as `sac eval` has it, and its scores question by question."""
    engine = place.engine(spec.method, spec.model, spec.adapter)
    task = load_task(place.file(spec.file), limit=spec.limit, seed=spec.seed)
    if spec.context_tokens is not None:
        task = cut(task, engine.method.backbone, spec.context_tokens)
    source = Given(task, spec.ratio)
    source.sampling = Sampling(max_new_tokens=spec.answer_tokens)

    def heard(name: str, label: str, done: int, of: int) -> None:
        listen(done, of)

    scored = score(source, engine, reader_of(spec.reader), place.batch, spec.label, heard)
    rows: Sequence[Any] = scored.predictions
    return {
        "run": dataclasses.asdict(scored.run),
        "scores": {name: [round(getattr(p, name), 6) for p in rows] for name in METRICS},
    }


def cut(task: Task, backbone: Backbone, tokens: int) -> Task:
    """The same questions, of contexts of at most so many tokens, and of what the model can read at all."""
    most = min(tokens, backbone.context_length // 2)
    contexts = []
    for text, questions in task.contexts:
        ids = backbone.tokens(text)
        contexts.append((text if len(ids) <= most else backbone.tokenizer.decode(ids[:most]), questions))
    return Task(task.name, tuple(contexts))
