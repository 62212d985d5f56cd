"""Where the passages come from that a question is answered from, and the one loop that asks, answers and scores."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from sac_rag.answer.engine import Engine
from sac_rag.answer.reader import Sampling
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.templates import layout_of
from sac_rag.config import AskConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.metrics import contains
from sac_rag.evaluate.prompts import Asked, answers_of, prompts_of
from sac_rag.evaluate.readers import QuestionReader
from sac_rag.evaluate.runs import Prediction, RetrievedRun, Run, Scored, summary
from sac_rag.evaluate.tasks import Task, groups
from sac_rag.records import Hit

if TYPE_CHECKING:
    from sac_rag.pipeline import SacRag

Listen = Callable[[str, str, int, int], None]
"""(set, reader label, questions done, questions in all)."""
TRIES = 16
"""Contexts looked at for one that does not hold an accepted answer of another's questions."""


class Source(ABC):
    """The passages of a task's questions."""

    run: ClassVar[type[Run]] = Run
    sampling: Sampling | None = None
    """How answers are chosen; greedily where it is None."""

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def asked(self, engine: Engine, reader: QuestionReader, batch: int) -> Iterator[Asked]:
        """Prompts, in groups of about `batch` questions."""

    @abstractmethod
    def told(self, reader: QuestionReader, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """The fields of a run that follow from where its passages came from."""


class Given(Source):
    """The contexts of a task: those of the file (gold), or of `mismatched`. prompt: its name, if it has one."""

    def __init__(self, task: Task, ratio: float | None, prompt: str | None = None) -> None:
        super().__init__(task)
        self._ratio, self._prompt = ratio, prompt
        self._stored = self._tokens = 0

    def asked(self, engine: Engine, reader: QuestionReader, batch: int) -> Iterator[Asked]:
        contexts, layout = self.task.contexts, self._layout(engine)
        first = [0]
        for _, questions in contexts:
            first.append(first[-1] + len(questions))
        for group in groups(self.task, batch) if reader.looks else [list(range(len(contexts)))]:
            asked = prompts_of(engine.method, [contexts[i] for i in group], reader, self._ratio, layout)
            asked.places = [place for i in group for place in range(first[i], first[i + 1])]
            self._stored, self._tokens = self._stored + asked.stored_bytes, self._tokens + asked.source_tokens
            yield asked

    def _layout(self, engine: Engine) -> PromptLayout | None:
        """Where it is not the adapter's own."""
        layout = layout_of(engine.method.backbone.tokenizer, self._prompt) if self._prompt else None
        return None if layout == engine.method.layout else layout

    def told(self, reader: QuestionReader, predictions: Sequence[Prediction]) -> dict[str, Any]:
        stored = self._stored / self._tokens if self._stored else None
        return {"ratio": self._ratio, "prompt": self._prompt, "bytes_per_source_token": stored}


class Found(Source):
    """What a library has found for each question; memories are loaded a batch at a time."""

    run = RetrievedRun

    def __init__(self, task: Task, rag: SacRag, found: Sequence[Sequence[Hit]], ask: AskConfig) -> None:
        super().__init__(task)
        self._rag, self._found, self._ask = rag, found, ask
        self.sampling = Sampling(ask.max_new_tokens, ask.temperature, ask.top_p, ask.seed)

    def asked(self, engine: Engine, reader: QuestionReader, batch: int) -> Iterator[Asked]:
        questions = self.task.in_order
        ask = replace(self._ask, fidelity=reader.fidelity, reader=reader.reads)
        for start in range(0, len(questions), batch):
            asked = Asked(places=list(range(len(questions)))[start : start + batch])
            for place in asked.places:
                question, hits = questions[place], self._found[place]
                made = reader.assembled(self._rag, engine.method, hits, question.question, ask)
                asked.prompts.append(made.prompt)
                asked.questions.append(question)
                asked.held.append(any(contains(h.passage.text, question.answers) for h in hits))
                asked.cut += len(made.hits) < len(hits)
            yield asked

    def told(self, reader: QuestionReader, predictions: Sequence[Prediction]) -> dict[str, Any]:
        stats, config, memory = self._rag.stats(), self._rag.config, reader.compressed
        return {
            "ratio": config.ratio if memory else None,
            "bytes_per_source_token": stats.kv_bytes / stats.source_tokens if memory else None,
            "passage_tokens": config.passage_tokens,
            "k": self._ask.k,
            "passages": stats.passages,
            "recall": fmean(bool(p.found) for p in predictions),
        }


def score(
    source: Source, engine: Engine, reader: QuestionReader, batch: int, label: str, listen: Listen | None = None
) -> Scored[Any]:
    """Answer and score all questions of a source with one reader. label: what listeners hear it called."""
    name, total = source.task.name, source.task.questions
    answered: dict[int, Prediction] = {}
    cut = 0

    def heard(count: int) -> None:
        if listen:
            listen(name, label, len(answered) + count, total)

    with engine.busy(), measured(engine.device) as cost:
        for asked in source.asked(engine, reader, batch):
            answers = answers_of(
                engine.service_of(reader.reads).reader, asked.prompts, reader.wide * batch, source.sampling, done=heard
            )
            held: Sequence[bool | None] = asked.held or [None] * len(answers)
            for place, q, found, (text, logprob) in zip(asked.places, asked.questions, held, answers, strict=True):
                answered[place] = Prediction.of(q, text, logprob, found)
            cut += asked.cut
    predictions = tuple(answered[place] for place in range(total))
    run = source.run(
        reader=reader.name,
        method=engine.method_name if reader.by_adapter else None,
        peak_mib=cost.peak_mib,
        cut=cut,
        **source.told(reader, predictions),
        **summary(predictions, name, cost.seconds),
    )
    return Scored(run, predictions)


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
