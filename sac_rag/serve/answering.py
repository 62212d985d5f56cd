"""Answers on the event loop: read by threads, ended by time, by the client that goes, and by the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.requests import Request

from sac_rag.records import Answer
from sac_rag.serve.errors import ApiError
from sac_rag.serve.metrics import Metrics

if TYPE_CHECKING:
    from sac_rag.answer.stream import Stream
    from sac_rag.serve.tools import Talking
    from sac_rag.serve.tracing import RequestTrace


class Answering(AsyncIterator[str]):
    """Pieces of one answer, which joined are its text; `answer` is whole after the last.

    Raises what asking raises, and TimeoutError beyond the time limit. `aclose` ends the work: the row leaves the batch
    before its next token.
    """

    def __init__(
        self, pool: Pool, library: str, begin: Callable[[], Stream | Talking], trace: RequestTrace | None
    ) -> None:
        self.library, self.trace = library, trace
        self.began = time.time()
        self._pool, self._begin = pool, begin
        self._items: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + pool.timeout
        self._stream: Stream | Talking | None = None
        self._answer: Answer | None = None
        self._gone = self._over = False
        self._begun, self._held = False, ""
        self._future = pool.threads.submit(self._work)

    @property
    def answer(self) -> Answer:
        assert self._answer is not None, "the answer is read to its end first"
        return self._answer

    def _work(self) -> None:
        """Read the stream; in a thread of the pool."""
        try:
            self._stream = stream = self._begin()
            if self.trace is not None:
                self.trace.took(stream.steps)
            if self._gone:
                return
            for piece in stream:
                self._tell(piece)
            if not self._gone:
                self._answer = stream.answer
        except BaseException as error:
            self._tell(error)
        finally:
            self._tell(None)

    def _tell(self, item: str | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def __anext__(self) -> str:
        while not self._over:
            try:
                async with asyncio.timeout_at(self._until):
                    item = await self._items.get()
            except TimeoutError:
                await self.aclose("timeout")
                raise TimeoutError(
                    f"no whole answer within {self._pool.timeout:g} s: ask for fewer tokens, or raise --timeout"
                ) from None
            except BaseException:
                await self.aclose()
                raise
            if isinstance(item, BaseException):
                if self.trace is not None:
                    self.trace.raised(item)
                self._end("error")
                raise item
            if item is None:
                self._end(None)
                break
            if piece := self._shown(item):
                return piece
        raise StopAsyncIteration

    def _shown(self, piece: str) -> str:
        """Without blanks at the beginning, and at the end: joined pieces are the answer's own text."""
        piece = self._held + piece
        if not self._begun:
            piece = piece.lstrip()
        shown = piece.rstrip()
        self._held = piece[len(shown) :]
        self._begun = self._begun or bool(shown)
        return shown

    async def aclose(self, how: str = "cancelled") -> None:
        """End the work, if it has not ended."""
        if not self._over:
            self._gone = True
            if self._stream is not None:
                self._stream.cancel()
            self._future.cancel()
            self._end(how)

    def _end(self, how: str | None) -> None:
        if not self._over:
            self._over = True
            self._pool.left(self, how)

    async def whole(self, request: Request) -> Answer:
        """The whole answer; ApiError 499 where its client goes first."""

        async def read() -> None:
            async for _ in self:
                pass

        reading, gone = asyncio.create_task(read()), asyncio.create_task(departure(request))
        try:
            await asyncio.wait((reading, gone), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ApiError(499, "client_gone", "the client closed the connection")
            reading.result()
            return self.answer
        finally:
            gone.cancel()
            reading.cancel()
            await self.aclose()


async def departure(request: Request) -> None:
    """Until the client is gone; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Pool:
    """Threads that read answers, one for each answer under way."""

    def __init__(self, most: int, timeout: float, metrics: Metrics) -> None:
        self.most, self.timeout, self.metrics = most, timeout, metrics
        self.threads = ThreadPoolExecutor(max_workers=most, thread_name_prefix="sac-answer")
        self._under_way: set[Answering] = set()
        self.closing = False

    @property
    def under_way(self) -> int:
        """Answers that somebody waits for."""
        return len(self._under_way)

    def answer(
        self, library: str, begin: Callable[[], Stream | Talking], trace: RequestTrace | None = None
    ) -> Answering:
        """Begin an answer; `trace` is told of it. ApiError 429 where too many wait, 503 where the server ends."""
        if self.closing:
            raise ApiError(503, "shutting_down", "the server is ending", retry_after=30)
        if len(self._under_way) >= self.most:
            message = f"{self.most} answers are under way or wait; come again soon"
            raise ApiError(429, "too_busy", message, retry_after=1)
        answering = Answering(self, library, begin, trace)
        self._under_way.add(answering)
        return answering

    def left(self, answering: Answering, how: str | None) -> None:
        """An answer has ended: whole, or as `how` says."""
        self._under_way.discard(answering)
        trace = answering.trace
        if how is not None:
            self.metrics.ended.labels(answering.library, how).inc()
            if trace is not None and how != "error":  # of which more is known where it is raised
                trace.failed(how, fault=how == "timeout")
        elif answering._answer is not None:
            self.metrics.answered(answering.library, answering.answer)
            if trace is not None:
                trace.answered(answering.answer)

    async def close(self) -> None:
        """End what is under way."""
        self.closing = True
        for answering in list(self._under_way):
            await answering.aclose()
        await asyncio.to_thread(self.threads.shutdown, wait=True, cancel_futures=True)
