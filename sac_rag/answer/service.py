"""Requests of any number of threads, answered as one batch by one model."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Completion, Reader, Row, Sampling
from sac_rag.answer.steps import Step, Steps
from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.session import Session
from sac_rag.errors import check_process

Item = int | None | BaseException
"""A token, the end, or what went wrong."""

IDLE_S = 20.0
"""Seconds without work after which the computing thread ends."""
SHARED_UNITS = 16
"""Shortest common beginning of two prompts that is worth going on from, unless it holds a memory."""


@dataclass(eq=False)
class _Job:
    prompt: Prompt
    sampling: Sampling
    keep: bool
    sink: Callable[[Item], None]
    steps: Steps
    row: Row | None = None
    sent: int = 0
    reused: int = 0
    cancelled: bool = False
    over: bool = False
    step: Step | None = None

    def turn_to(self, name: str | None, **counts: int) -> None:
        """End the step that is under way; the next one begins, unless the answer is over."""
        if self.step is not None:
            self.step.ended = time.perf_counter()
        self.step = None if name is None else self.steps.begin(name, **counts)


class _Answering:
    """What a caller sees of its answer. Dropping or cancelling it takes its row out of the batch."""

    def __init__(self, job: _Job) -> None:
        self._job, self._over = job, False

    @property
    def completion(self) -> Completion:
        """What has been made so far; whole once the iteration has ended."""
        return self._job.row.completion if self._job.row else Completion([], 0.0, False)

    @property
    def reused(self) -> int:
        """Leading cache slots that an earlier turn had read already."""
        return self._job.reused

    @property
    def steps(self) -> Steps:
        """What has been done for this answer so far."""
        return self._job.steps

    def cancel(self) -> None:
        self._job.cancelled = True

    def __del__(self) -> None:
        self.cancel()


class Generation(_Answering, Iterator[int]):
    """Token ids of one answer, as they are made."""

    def __init__(self, job: _Job, items: SimpleQueue[Item]) -> None:
        super().__init__(job)
        self._items = items

    def __next__(self) -> int:
        return self.take()

    def take(self, timeout: float | None = None) -> int:
        """The next token; StopIteration at the end, TimeoutError when none comes within so many seconds."""
        if self._over:
            raise StopIteration
        try:
            item = self._items.get(timeout=timeout)
        except Empty:
            raise TimeoutError from None
        if isinstance(item, int):
            return item
        self._over = True
        if isinstance(item, BaseException):
            raise item
        raise StopIteration


class AsyncGeneration(_Answering, AsyncIterator[int]):
    """Token ids of one answer, as they are made, for an event loop."""

    def __init__(self, job: _Job, items: asyncio.Queue[Item]) -> None:
        super().__init__(job)
        self._items = items

    async def __anext__(self) -> int:
        return await self.take()

    async def take(self, timeout: float | None = None) -> int:
        """As `Generation.take`, with StopAsyncIteration at the end."""
        if self._over:
            raise StopAsyncIteration
        try:
            item = await asyncio.wait_for(self._items.get(), timeout)
        except BaseException:  # the task that waits was cancelled
            self.cancel()
            raise
        if isinstance(item, int):
            return item
        self._over = True
        if isinstance(item, BaseException):
            raise item
        raise StopAsyncIteration


@dataclass(eq=False)
class _Kept:
    units: list[Hashable]
    """Of the prompt and its answer."""
    asked: int
    """How many of them are the prompt's."""
    session: Session
    slots: int = field(init=False)

    def __post_init__(self) -> None:
        self.slots = self.session.held


class Service:
    """One batch of rows under way; requests join between two tokens.

    busy: held while the model computes, so that compressing takes turns with answering. max_rows: answers made at
    the same time; more wait. kept_slots: cache slots that finished conversations may take up, in a head on
    average, the longest unused go first.
    One daemon thread computes; it starts with the first request and ends when there is none for a while.
    """

    def __init__(
        self,
        reader: Reader,
        busy: Callable[[], contextlib.AbstractContextManager[None]],
        *,
        max_rows: int = 16,
        kept_slots: int = 32_768,
    ) -> None:
        self.max_rows, self.kept_slots = max_rows, kept_slots
        self._busy, self._decoding = busy, reader.start()
        self.reader, self.backbone = reader, reader.backbone
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._waiting: list[_Job] = []
        self._under_way: list[_Job] = []
        self._kept: list[_Kept] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        # A daemon thread that computes while the interpreter goes down aborts the process.
        atexit.register(_close, weakref.ref(self))

    @property
    def load(self) -> tuple[int, int]:
        """(answers being made, answers that wait for a row)."""
        with self._lock:
            return len(self._under_way), len(self._waiting)

    def close(self) -> None:
        """Cancel what is under way and wait for the computing thread; called at the end of the process."""
        if self._pid != os.getpid():
            return  # a forked child has neither
        with self._lock:
            self._closed = True
            self._lock.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=10)

    def submit(
        self, prompt: Prompt, sampling: Sampling, *, keep: bool = False, steps: Steps | None = None
    ) -> Generation:
        """Begin an answer. keep: hold its cache for a next prompt that begins with this one and its answer. steps:
        where its steps are noted.

        Errors of reading the prompt (LibraryCorrupt, MemoryInvalid) are raised by the first `next`.
        """
        items: SimpleQueue[Item] = SimpleQueue()
        return Generation(self._enqueue(_Job(prompt, sampling, keep, items.put, steps or Steps())), items)

    def stream(self, prompt: Prompt, sampling: Sampling, *, keep: bool = False) -> AsyncGeneration:
        """As `submit`, without ever blocking the running event loop."""
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Item]()

        def sink(item: Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(items.put_nowait, item)

        return AsyncGeneration(self._enqueue(_Job(prompt, sampling, keep, sink, Steps())), items)

    def _enqueue(self, job: _Job) -> _Job:
        check_process(self._pid, "the model was loaded")
        with self._lock:
            if self._closed:
                raise RuntimeError("this service is closed: the process is ending")
            job.turn_to("wait", rows=len(self._under_way), waiting=len(self._waiting))
            self._waiting.append(job)
            self._lock.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sac-answers", daemon=True)
                self._thread.start()
        return job

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Take in what waits and make a token or more for each row; False when there is nothing more to do.

        Nothing of a request stays behind in the frame that waits for the next: it may hold a library open.
        """
        new = self._next()
        if new is None:
            return False
        try:
            with self._busy():
                self._leave()
                self._admit(new)
                self._leave()
                self._decoding.advance()
                self._report()
        except BaseException as error:
            # Nothing that befalls the batch may leave a caller waiting for ever.
            for job in (*self._under_way, *new):
                self._end(job, error)
            self._decoding.leave(self._decoding.rows)
            self._under_way = []
        return True

    def _next(self) -> list[_Job] | None:
        """Requests that come in now, at their turn; None when the thread is to end."""
        with self._lock:
            if not self._under_way:
                self._lock.wait_for(lambda: self._waiting or self._closed, timeout=IDLE_S)
            if self._closed:
                for job in (*self._under_way, *self._waiting):
                    self._end(job, None)
                return None
            for job in self._waiting:
                if job.cancelled:
                    self._end(job, None)
            self._waiting = [j for j in self._waiting if not j.over]
            new = self._waiting[: self.max_rows - len(self._under_way)]
            del self._waiting[: len(new)]
            if not new and not self._under_way:
                self._thread = None
                return None
            return new

    def _leave(self) -> None:
        """Take out what was cancelled."""
        stopped = [j for j in self._under_way if j.cancelled]
        for job in stopped:  # a stop sequence, say: the conversation may go on
            if job.keep:
                self._keep(job)
        self._drop(stopped)

    def _admit(self, jobs: Sequence[_Job]) -> None:
        fresh: list[_Job] = []
        for job in jobs:
            if job.cancelled:  # while others before it were read
                self._end(job, None)
                continue
            try:
                session = self._resumed(job) if job.keep else None
                if session is None:
                    fresh.append(job)
                else:
                    self._enter([job], session)
            except Exception as error:
                self._end(job, error)
        loaded, parts = [], []
        for job in fresh:
            try:
                parts.append(self._loaded(job, 0))
                loaded.append(job)
            except Exception as error:
                self._end(job, error)
        if loaded:
            self._begin(loaded, parts)
        self._report()

    def _loaded(self, job: _Job, units: int) -> Sequence[object]:
        """What is to be read behind the first so many units, memories loaded."""
        if recalls := job.prompt.recalls(units):
            counts = {"slots": sum(r.slots for r in recalls), "source_tokens": sum(r.source_len for r in recalls)}
            job.turn_to("load", **counts)
        return job.prompt.after(units)

    def _begin(self, jobs: Sequence[_Job], parts: Sequence[Sequence[object]]) -> None:
        """Read prompts together; one by one where that fails, so that only those at fault do."""
        for job, part in zip(jobs, parts, strict=True):
            job.turn_to("prefill", **_sizes(part), rows=len(jobs))
        try:
            self._enter(jobs, self._decoding.read(parts))
        except Exception as error:
            if len(jobs) == 1:
                self._end(jobs[0], error)
                return
            for job, part in zip(jobs, parts, strict=True):
                self._begin([job], [part])

    def _enter(self, jobs: Sequence[_Job], session: Session) -> None:
        rows = self._decoding.enter(session, [j.prompt for j in jobs], [j.sampling for j in jobs])
        for job, row in zip(jobs, rows, strict=True):
            job.row = row
            self._under_way.append(job)
            job.turn_to("decode")
        for job in jobs:
            if job.step is not None:
                job.step.counts["rows"] = len(self._under_way)

    def _resumed(self, job: _Job) -> Session | None:
        """The kept conversation that shares most with this prompt, read on to its end; None when none does.

        A prompt that holds all that was asked in it is its next turn and takes it over. Any other, an edited history or
        another conversation that begins alike, goes on from a copy.
        """
        units, best, shared = job.prompt.units(), None, 0
        for kept in self._kept:
            n = _common(kept.units, units)
            if n > shared:
                best, shared = kept, n
        shared = min(shared, len(units) - 1)
        if best is None or (shared < SHARED_UNITS and not any(isinstance(u, tuple) for u in units[:shared])):
            return None
        rest = self._loaded(job, shared)
        self._kept.remove(best)
        session = best.session
        if shared < best.asked:
            session = session.row(0)
            self._kept.append(best)
        job.reused, position = job.prompt.extent(shared)
        job.turn_to("prefill", **_sizes(rest), reused=job.reused, rows=1)
        session.rewind([position])
        return self._decoding.read([rest], onto=session)

    def _report(self) -> None:
        """Pass new tokens on; end what is done."""
        done = []
        for job in self._under_way:
            if job.row is None:
                continue
            ids = job.row.completion.token_ids
            for token in ids[job.sent :]:
                job.sink(token)
            job.sent = len(ids)
            if job.row.done:
                done.append(job)
        for job in done:
            error = job.row.error if job.row else None
            if job.keep and error is None:
                self._keep(job)
            self._end(job, error)
        self._drop(done)

    def _keep(self, job: _Job) -> None:
        session = self._decoding.session_of(job.row) if job.row else None
        if session is None or job.row is None:
            return
        completion = job.row.completion
        # The last token of an answer that was cut has been chosen but not read.
        read = completion.token_ids if completion.ended else completion.token_ids[:-1]
        units = job.prompt.units()
        self._kept.append(_Kept([*units, *read], len(units), session))
        while len(self._kept) > 1 and sum(k.slots for k in self._kept) > self.kept_slots:
            del self._kept[0]

    def _drop(self, jobs: Sequence[_Job]) -> None:
        if jobs:
            self._decoding.leave([j.row for j in jobs if j.row])
            self._under_way = [j for j in self._under_way if j not in jobs]
            for job in jobs:
                self._end(job, None)

    @staticmethod
    def _end(job: _Job, how: BaseException | None) -> None:
        if not job.over:
            job.over = True
            if job.step is not None:
                job.step.error = None if how is None else type(how).__name__
                if job.row is not None:
                    job.step.counts |= {"tokens": len(job.row.completion.token_ids), "passes": job.row.passes}
                job.turn_to(None)
            job.sink(how)


def _sizes(parts: Sequence[object]) -> dict[str, int]:
    """Tokens to read and slots of memory in the parts of one prompt."""
    tokens = sum(len(p) for p in parts if isinstance(p, Sequence))
    return {"tokens": tokens, "slots": sum(p.slots for p in parts if isinstance(p, Memory))}


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _close(service: weakref.ref[Service]) -> None:
    if (alive := service()) is not None:
        alive.close()
