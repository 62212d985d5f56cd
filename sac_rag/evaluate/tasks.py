"""Questions with their gold context, drawn from MRQA-style files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sac_rag.errors import TrainingError
from sac_rag.train.data import Question, read_contexts


@dataclass(frozen=True)
class Task:
    """Some questions of one file, those of a context together."""

    name: str
    contexts: tuple[tuple[str, tuple[Question, ...]], ...]

    @property
    def questions(self) -> int:
        return sum(len(q) for _, q in self.contexts)


def load_task(path: str | Path, *, limit: int | None = None, seed: int = 0, first: int | None = None) -> Task:
    """`limit` questions drawn at random with `seed`, of the `first` contexts; None takes all.

    Raises TrainingError when the file is missing, does not parse or holds no questions.
    """
    contexts = [c for c in read_contexts(path) if c.questions][:first]
    pairs = [(i, j) for i, c in enumerate(contexts) for j in range(len(c.questions))]
    if not pairs:
        raise TrainingError(f"{path} holds no questions; evaluation needs lines with context and qas")
    if limit is not None and limit < len(pairs):
        pairs = sorted(random.Random(seed).sample(pairs, limit))
    chosen: dict[int, list[Question]] = {}
    for i, j in pairs:
        chosen.setdefault(i, []).append(contexts[i].questions[j])
    name = Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]
    return Task(name, tuple((contexts[i].text, tuple(qs)) for i, qs in chosen.items()))


def batches(task: Task, size: int) -> Sequence[Sequence[tuple[str, tuple[Question, ...]]]]:
    """Contexts in groups of about `size` questions, short contexts first (they batch with their likes)."""
    groups: list[list[tuple[str, tuple[Question, ...]]]] = []
    room = 0
    for context in sorted(task.contexts, key=lambda c: len(c[0])):
        if not groups or room <= 0:
            groups.append([])
            room = size
        groups[-1].append(context)
        room -= len(context[1])
    return groups
