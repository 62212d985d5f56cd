"""Streams that are left after their first piece: each stops within two steps, no row stays, and threads go back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
from pathlib import Path

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling
from sac_rag.records import Document
from tests.reliability.parts import Found
from tests.reliability.small import config, models, sentences

STREAMS, SHORT = 200, 24
LONG = 1500
"""Tokens that an answer would take if nobody left it."""
WAIT_S = 60.0
"""Longest time for rows to leave the batch; a step of the tiny model takes milliseconds, on an idle machine."""
STEPS = 2
"""Tokens that may yet be made for a stream that was left."""


def piece(place: Path, number: int, short: bool) -> Found:
    gc.disable()  # leaving is to be enough, however long Python takes to look for circles
    try:
        return _piece(place, number, short)
    finally:
        gc.enable()


def _judge(rag: SacRag, found: Found, ways: list[str]) -> None:
    """Streams that were left are to be cancelled now, and gone within STEPS tokens."""
    service, deadline = rag.engine.service, time.monotonic() + WAIT_S
    jobs = [*service._under_way, *service._waiting]
    made = [len(j.row.completion.token_ids) if j.row else 0 for j in jobs]
    go_on = sum(not j.cancelled for j in jobs)
    found.check(not go_on, f"{go_on} streams go on after {', '.join(ways)}")
    while rag.load != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.001)
    found.check(rag.load == (0, 0), f"{rag.load} rows are under way and waiting {WAIT_S:g} s after {', '.join(ways)}")
    more = max((len(j.row.completion.token_ids) - n for j, n in zip(jobs, made, strict=True) if j.row), default=0)
    found.check(more <= STEPS, f"{more} tokens were made for nobody after {', '.join(ways)}")


def _piece(place: Path, number: int, short: bool) -> Found:
    found, toys, rng = Found(), models(place / "models"), random.Random(f"cancelled {number}")
    with SacRag.open(place / "a.lib", config=config(toys), create=True, dtype="bfloat16") as rag:
        rag.put([Document(f"d{n}", sentences(n)) for n in range(4)])
        rag.ask("warm up", max_new_tokens=2)
        threads = threading.active_count()
        count = SHORT if short else STREAMS
        for n in range(0, count, 4):
            ways = [rng.choice((_dropped, _closed, _replied, _task)) for _ in range(4)]
            workers = [threading.Thread(target=way, args=(rag, f"Which {n} {i}?")) for i, way in enumerate(ways)]
            for w in workers:
                w.start()
            for w in workers:
                w.join()
            found.counts["streams"] += len(workers)
            _judge(rag, found, [way.__name__ for way in ways])
        rows = len(rag.engine.service._decoding.rows)
        found.check(rows == 0, f"{rows} rows are left in the batch")
        found.check(threading.active_count() <= threads, f"{threading.active_count()} threads, {threads} before")
        answer = rag.ask("And now?", max_new_tokens=4)
        found.check(answer.usage.completion_tokens > 0, "nothing is answered any more")
    return found


def _dropped(rag: SacRag, question: str) -> None:
    stream = rag.stream(question, max_new_tokens=LONG)
    next(stream)
    del stream


def _closed(rag: SacRag, question: str) -> None:
    generation = rag.converse([Message("user", (question,))], Sampling(max_new_tokens=LONG, min_new_tokens=LONG))
    next(generation)
    generation.cancel()


def _replied(rag: SacRag, question: str) -> None:
    reply = rag.reply([Message("user", (question,))], Sampling(max_new_tokens=LONG, min_new_tokens=LONG))
    next(iter(reply))
    del reply


def _task(rag: SacRag, question: str) -> None:
    """A task that is cancelled while it waits for its next piece."""

    async def listen() -> None:
        reply = await rag.areply([Message("user", (question,))], Sampling(max_new_tokens=LONG, min_new_tokens=LONG))
        async for _ in reply:
            await asyncio.sleep(0)

    async def leave() -> None:
        task = asyncio.ensure_future(listen())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(leave())
