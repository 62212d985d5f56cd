"""Questions, changes, gc and reopening without end; memory and open files must not grow."""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

import numpy as np

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling
from sac_rag.records import Document
from tests.reliability.parts import Found
from tests.reliability.small import config, models, sentences

SECONDS, WARM, SHORT = 3600.0, 0.25, 8.0
"""Length of a piece, the share of it that warms up, and that of a short one."""
GROWTH = 5.0
"""Most MB an hour that memory may grow."""
SAMPLES = 40
KEPT_SLOTS = 2048
"""Some thirty conversations."""


def piece(place: Path, number: int, short: bool) -> Found:
    found, toys, rng = Found(), models(place / "models"), random.Random(f"soak {number}")
    length = SHORT if short else float(os.environ.get("SAC_SOAK_SECONDS", SECONDS))
    rag = SacRag.open(place / "a.lib", config=config(toys), write=True, create=True, dtype="bfloat16")
    rag.put([Document(f"d{n}", sentences(n)) for n in range(12)])
    # What is kept of conversations is bounded; on a slow machine the usual bound is reached long after warming up.
    rag.engine.service.kept_slots = KEPT_SLOTS
    began, rounds = time.monotonic(), 0
    memory: list[tuple[float, float]] = []
    files: list[int] = []
    while (now := time.monotonic() - began) < length:
        rag = _round(rag, place / "a.lib", rng, rounds)
        rounds += 1
        if now > WARM * length and (not memory or now - memory[-1][0] > length * (1 - WARM) / SAMPLES):
            gc.collect()
            memory.append((now, _resident_mb()))
            files.append(len(os.listdir("/proc/self/fd")))
    rag.close()
    found.counts["seconds"] += round(length)
    found.counts["rounds"] += rounds
    if len(memory) > 4:
        slope = 3600 * float(np.polyfit(*zip(*memory, strict=True), 1)[0])
        found.measured["MB_an_hour"] = slope
        found.measured["resident_MB"] = memory[-1][1]
        found.measured["grown_MB"] = memory[-1][1] - memory[0][1]
        if length >= 600:  # a slope over seconds is noise of the allocator
            found.check(slope < GROWTH, f"memory grows by {slope:.1f} MB an hour")
        half = len(files) // 2
        found.check(max(files[half:]) <= max(files[:half]) + 2, f"open files grow: {files}")
    return found


def _round(rag: SacRag, folder: Path, rng: random.Random, n: int) -> SacRag:
    """One of what a service does all day."""
    question = f"Which {rng.randrange(100)}?"
    kind = n % 8
    if kind < 3:
        rag.ask(question, k=rng.randrange(1, 4), max_new_tokens=8)
    elif kind == 3:
        stream = rag.stream(question, max_new_tokens=200)
        next(stream)
        del stream
    elif kind == 4:
        list(rag.converse([Message("user", (question,))], Sampling(max_new_tokens=8)))
    elif kind == 5:
        rag.put([Document(f"d{rng.randrange(12)}", sentences(rng.randrange(10**6)))])
    elif kind == 6 and n % 3 == 0:
        rag.gc()
    elif kind == 7:
        rag.close()
        rag = SacRag.open(folder, write=True, dtype="bfloat16")
    return rag


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
