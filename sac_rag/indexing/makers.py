"""Who makes the orders of an indexing run: this process, child processes beside it, or a cluster (`on_ray`). They come
back in the order in which they were given, whoever it is."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from sac_rag.errors import SacError
from sac_rag.indexing.make import Maker, MakeResult
from sac_rag.indexing.plan import Order
from sac_rag.library.folder import erase_made
from sac_rag.processes import Child, raise_error

Ready = Callable[[Order, MakeResult], None]
"""Called with each order when it is made, in the order in which they were given."""
Heard = Callable[[Order, str, int], None]
"""Called with an order under way, its step and the number of its passages that are compressed."""


@dataclass(frozen=True)
class Workers:
    """Child processes that make orders, of one thread each.

    target: "module:function" for `processes.Child`, which answers a `Work` with a `MakeResult`. setup: what it is
    told first.
    """

    count: int
    target: str
    setup: Mapping[str, Any]

    def start(self, maker: Maker, ready: Ready, heard: Heard) -> Beside:
        """maker: as the children make; it says where their files lie."""
        return Beside(self, maker, ready, heard)


class Makers(AbstractContextManager["Makers"], Protocol):
    def give(self, order: Order) -> None:
        """Have it made; earlier ones may become ready meanwhile."""

    def finish(self) -> None:
        """Wait until all orders are ready."""


class Here:
    """Makes each order at once, in this process."""

    def __init__(self, maker: Maker, ready: Ready, heard: Heard) -> None:
        self._maker, self._ready, self._heard = maker, ready, heard

    def give(self, order: Order) -> None:
        self._ready(order, self._maker.make(order.work(), lambda step, count: self._heard(order, step, count)))

    def finish(self) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


@dataclass(eq=False)
class _Job:
    order: Order
    made: MakeResult | None = None


class Beside:
    """Hands orders to child processes. No more than one a child and one are under way or wait for an earlier one, so
    that what an end from outside can cost is bounded."""

    def __init__(self, workers: Workers, maker: Maker, ready: Ready, heard: Heard) -> None:
        self._workers, self._folder, self._ready, self._heard = workers, maker.folder, ready, heard
        self._events: queue.SimpleQueue[tuple[Child, dict[str, Any] | None]] = queue.SimpleQueue()
        self._at: dict[Child, _Job | None] = {}
        self._jobs: deque[_Job] = deque()
        """Given and not ready, oldest first."""

    def give(self, order: Order) -> None:
        job = _Job(order)
        self._jobs.append(job)
        if not (order.compress or order.embed):
            job.made = MakeResult()
            self._hand_over()
            return
        while len(self._jobs) > self._workers.count + 1:
            self._listen()
        child = self._idle()
        self._at[child] = job
        child.send(order.work().to_mapping())

    def finish(self) -> None:
        while self._jobs:
            self._listen()

    def _idle(self) -> Child:
        while True:
            for child, job in self._at.items():
                if job is None:
                    return child
            if len(self._at) < self._workers.count:
                return Child(self._workers.target, self._workers.setup, self._events)
            self._listen()

    def _listen(self) -> None:
        """Deal with the next event of a child."""
        child, event = self._events.get()
        job = self._at.get(child)
        if event is None:
            raise SacError(
                f"a worker that compressed documents died (code {child.stop()}), perhaps for lack of memory: what "
                f"is committed stays, and the same command goes on from there; use fewer than "
                f"{self._workers.count} workers"
            )
        raise_error(event, "compressing documents")
        if job and "heard" in event:
            self._heard(job.order, *event["heard"])
        elif job and "made" in event:
            job.made, self._at[child] = MakeResult.from_mapping(event["made"]), None
            self._hand_over()

    def _hand_over(self) -> None:
        while self._jobs and (made := self._jobs[0].made) is not None:
            self._ready(self._jobs.popleft().order, made)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for child in self._at:
            child.stop()
        # Also what a child had finished, and this process had not yet heard of.
        erase_made(self._folder, {child.pid for child in self._at})
