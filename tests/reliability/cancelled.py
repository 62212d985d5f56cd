"""Streams that are left after their first piece: no row stays in the batch, and threads go back."""

from __future__ import annotations

import asyncio
import contextlib
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
WAIT_S = 10.0
"""Longest time for rows to leave the batch; a step of the tiny model takes milliseconds."""


def piece(place: Path, number: int, short: bool) -> Found:
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
        service, deadline = rag.engine.service, time.monotonic() + WAIT_S
        while (service._under_way or service._waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        left = len(service._under_way) + len(service._waiting)
        found.check(left == 0, f"{left} rows are still under way after {count} streams")
        rows = len(service._decoding.rows)
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
