"""What an evaluation has to compute: a job a run, in an order that leaves no processor idle at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sac_rag.evaluate.tasks import Task

ANSWER_CHARACTERS = 400
"""An answer takes about as long as reading so many characters of context."""


@dataclass(frozen=True)
class Work:
    """What all jobs of an evaluation share, as `evaluate` takes it."""

    model: str
    limit: int | None
    seed: int
    batch: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Variant:
    """A reader in one of its settings: a run a file. called: the name of its adapter, where there are several."""

    reader: str
    method: str
    adapter: str
    called: str | None = None
    ratio: float | None = None
    prompt: str | None = None

    @property
    def engine(self) -> tuple[str, str]:
        """What is loaded for it, besides the base model."""
        return self.method, self.adapter

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        who = f"{self.method} {self.ratio:g}x" if self.ratio else self.reader
        return " ".join(filter(None, (who, self.called, self.prompt)))


@dataclass(frozen=True, eq=False)
class Job:
    """A variant on a file. cost: estimated, in characters read. settings: what the run is stored under."""

    variant: Variant
    file: str
    questions: int
    cost: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.settings['set']}, {self.variant.label}"

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "variant": Variant(**values["variant"])})


def cost_of(task: Task, reader: str) -> int:
    """Estimated characters that a reader reads: a text once for each question, what is cached once for all."""
    read = {"closed": 0, "text": sum(len(text) * len(questions) for text, questions in task.contexts)}
    once = sum(len(text) for text, _ in task.contexts)
    return read.get(reader, once) + ANSWER_CHARACTERS * task.questions


def take(left: list[Job], engine: tuple[str, str] | None) -> Job:
    """Remove the longest job of a list; one for the engine that is loaded, unless it is less than half as long."""
    longest = max(left, key=lambda job: job.cost)
    own = max((j for j in left if j.variant.engine == engine), key=lambda job: job.cost, default=longest)
    chosen = own if 2 * own.cost >= longest.cost else longest
    left.remove(chosen)
    return chosen
