"""One answer while it is written, the one way from tokens to text: stop strings, time limit, usage; sync and async."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Generic, TypeVar

from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Completion, Sampling, TextStream
from sac_rag.answer.service import AsyncGeneration, Generation, Service
from sac_rag.answer.steps import Steps
from sac_rag.compress.backbone import Backbone
from sac_rag.errors import ConfigError
from sac_rag.records import Evidence, Usage

G = TypeVar("G", Generation, AsyncGeneration)

BROKEN = "the answer was cut at {} tokens before it fitted its schema: allow more tokens"


class _Writing(Generic[G]):
    """What sync and async replies have in common: all but waiting for a token."""

    def __init__(
        self,
        generation: G,
        backbone: Backbone,
        prompt: Prompt,
        sampling: Sampling,
        stop: Sequence[str],
        timeout: float | None,
    ) -> None:
        if timeout is not None and not timeout >= 0:
            raise ConfigError(f"timeout is {timeout}; give seconds, or None for no limit")
        self._generation: G = generation
        self._prompt, self._sampling = prompt, sampling
        self._stream = TextStream(backbone, [stop] if isinstance(stop, str) else stop)
        self._began, self._limit = time.monotonic(), timeout
        self._written, self._over = 0, False
        self._pieces: list[str] = []
        self.first: float | None = None
        """When the first token was there, by `time.perf_counter`; None before."""

    @property
    def text(self) -> str:
        """What has been written so far."""
        return "".join(self._pieces)

    @property
    def completion(self) -> Completion:
        """Token ids and log-probability of what has been written so far. Behind a stop string more may have been made,
        a draft at once, which is no part of it."""
        made = self._generation.completion
        return made.first(self._written) if self._stream.stopped else made

    @property
    def finish_reason(self) -> str:
        """ "length" when the limit on tokens cut the answer, else "stop"."""
        cut = not self._stream.stopped and self._written >= self._sampling.max_new_tokens
        return "length" if cut else "stop"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of how the prompt was made, and of how the answer ended."""
        broken = self.completion.broken
        return (*self._prompt.notices, BROKEN.format(self._sampling.max_new_tokens)) if broken else self._prompt.notices

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """Sentences that were read as text beside the memories of their passages."""
        return self._prompt.evidence

    @property
    def steps(self) -> Steps:
        """What has been done for this answer so far."""
        return self._generation.steps

    @property
    def usage(self) -> Usage:
        """What has been read and written so far."""
        return Usage.of(self._prompt, self._written, self._generation.reused)

    def cancel(self) -> None:
        """Write no more; what was read stays with the conversation."""
        self._over = True
        self._generation.cancel()

    def _left(self) -> float | None:
        """Seconds left for the answer; TimeoutError when there are none."""
        if self._limit is None:
            return None
        left = self._limit - (time.monotonic() - self._began)
        if left <= 0:
            raise self._late()
        return left

    def _late(self) -> TimeoutError:
        self.cancel()
        return TimeoutError(f"no whole answer within timeout={self._limit} s: allow more time or lower max_tokens")

    def _took(self, token: int) -> str:
        """The text that a token completes."""
        self.first = self.first or time.perf_counter()
        self._written += 1
        piece = self._stream.push(token)
        if self._stream.stopped:
            self.cancel()
        return self._noted(piece)

    def _rest(self) -> str:
        """What was held back to the end."""
        self._over = True
        return self._noted(self._stream.flush())

    def _noted(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


class Reply(_Writing[Generation], Iterator[str]):
    """Pieces of one answer; `text`, `usage` and `finish_reason` are whole after the last. Dropping it stops the work.

    Raises TimeoutError where it takes longer than its time limit, and the errors of reading the prompt.
    """

    @classmethod
    def begin(
        cls,
        service: Service,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        timeout: float | None = None,
        keep: bool = True,
        steps: Steps | None = None,
    ) -> Reply:
        """stop: strings that end the answer and are no part of it. timeout: seconds for all of it. keep: hold what is
        read for the conversation's next turn. steps: where the steps of the answer are noted."""
        generation = service.submit(prompt, sampling, keep=keep, steps=steps)
        return cls(generation, service.backbone, prompt, sampling, stop, timeout)

    def __next__(self) -> str:
        while not self._over:
            try:
                token = self._generation.take(self._left())
            except StopIteration:
                piece = self._rest()
            except TimeoutError:
                raise self._late() from None
            else:
                piece = self._took(token)
            if piece:
                return piece
        raise StopIteration


class AsyncReply(_Writing[AsyncGeneration], AsyncIterator[str]):
    """As Reply, for an event loop, which it never blocks."""

    @classmethod
    def begin(
        cls,
        service: Service,
        prompt: Prompt,
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        timeout: float | None = None,
        keep: bool = True,
    ) -> AsyncReply:
        """As `Reply.begin`, on a running event loop."""
        generation = service.stream(prompt, sampling, keep=keep)
        return cls(generation, service.backbone, prompt, sampling, stop, timeout)

    async def __anext__(self) -> str:
        while not self._over:
            try:
                token = await self._generation.take(self._left())
            except StopAsyncIteration:
                piece = self._rest()
            except TimeoutError:
                raise self._late() from None
            else:
                piece = self._took(token)
            if piece:
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """For `contextlib.aclosing`: a stream that is left early is not written on."""
        self.cancel()
