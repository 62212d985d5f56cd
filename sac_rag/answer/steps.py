"""What an answer is made of, step by step, for whoever traces or times it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Step:
    """One step. `began` and `ended` are times of `time.perf_counter`; counts say how much was done, never of what."""

    name: str
    began: float
    ended: float | None = None
    """None while it is under way."""
    error: str | None = None
    """The class of the error that it ended with."""
    counts: dict[str, int] = field(default_factory=dict)


class Steps:
    """The steps of one answer in the order in which they began. Threads that share one may add to it and read it.

    `replay` makes the conversation of earlier turns, `search` finds passages, `place` lays them out in a prompt, `load`
    reads memories, `wait` lasts until the model is free, and again until the batch has a row, `prefill` reads the
    prompt, `decode` writes the answer, `heat` reads what it attended. Where a conversation holds memories that are
    loaded when they are read, `load` comes behind `wait`.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __iter__(self) -> Iterator[Step]:
        return iter(tuple(self._steps))

    def begin(self, name: str, **counts: int) -> Step:
        """Add a step that is under way; whoever began it sets its end."""
        step = Step(name, time.perf_counter(), counts=counts)
        self._steps.append(step)
        return step

    def note(self, name: str, began: float, ended: float, **counts: int) -> None:
        """Add a step that is over."""
        self._steps.append(Step(name, began, ended, counts=counts))

    @contextlib.contextmanager
    def step(self, name: str, **counts: int) -> Iterator[Step]:
        """A step that lasts as long as the block."""
        step = self.begin(name, **counts)
        try:
            yield step
        except BaseException as error:
            step.error = type(error).__name__
            raise
        finally:
            step.ended = time.perf_counter()
