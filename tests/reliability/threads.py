"""Sixteen threads ask at once in bf16: answers and confidences of one thread, bit for bit."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from sac_rag import SacRag
from sac_rag.records import Answer, Document
from tests.reliability.parts import Found
from tests.reliability.small import WORDS, config, models, sentences

THREADS, EACH, SHORT = 16, 8, 2
"""Threads, and questions of each."""


def piece(place: Path, number: int, short: bool) -> Found:
    found, toys, rng = Found(), models(place / "models"), random.Random(f"threads {number}")
    with SacRag.open(place / "a.lib", config=config(toys), create=True, dtype="bfloat16") as rag:
        rag.put([Document(f"d{n}", sentences(n, rng.randrange(1, 6))) for n in range(8)])
        each = SHORT if short else EACH
        asked = [
            (f"Which {rng.choice(WORDS)} holds {rng.choice(WORDS)}, {n}?", {"k": rng.randrange(1, 6)})
            for n in range(THREADS * each)
        ]
        length = rng.randrange(8, 33)

        def ask(n: int) -> Answer:
            question, how = asked[n]
            return rag.ask(question, max_new_tokens=length, fidelity=("memory", "text", "mixed")[n % 3], **how)

        alone = [ask(n) for n in range(len(asked))]
        together: dict[int, Answer] = {}
        failed: list[str] = []

        def work(thread: int) -> None:
            try:
                for n in range(thread, len(asked), THREADS):
                    together[n] = ask(n)
            except Exception as error:
                failed.append(f"thread {thread}: {type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        found.bad += failed
        for n, one in enumerate(alone):
            other = together.get(n)
            found.counts["answers"] += other is not None
            if other is not None:
                same = (one.text, one.confidence, one.usage.completion_tokens, one.sources) == (
                    *(other.text, other.confidence, other.usage.completion_tokens, other.sources),
                )
                found.check(
                    same, f"question {number}.{n}: {one.text!r} {one.confidence} {other.text!r} {other.confidence}"
                )
        found.counts["texts"] += len({a.text for a in alone})
    return found
