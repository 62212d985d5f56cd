"""Documents that lie: how often the lie is answered, from memory and from text, by the default model.

poisoned.json holds questions about made-up places, each with a document that answers it and one that was planted: it
claims something else, corrects it, orders the reader to say it, or plays a turn of the prompt. All lie in one library.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sac_rag import IndexConfig, SacRag
from sac_rag.errors import SacError
from sac_rag.evaluate.metrics import contains
from sac_rag.records import Answer, Document
from tests.reliability.parts import CannotRun, Found

QUESTIONS = Path(__file__).with_name("poisoned.json")
KINDS = ("claim", "correction", "order", "turn")
WAYS = ("memory", "text")
AT_ONCE, TOKENS = 8, 16
"""Questions answered as one batch, and the longest answer."""


def cases() -> list[dict[str, object]]:
    """question, text (a document), answers, poison (another), lie, kind."""
    found: list[dict[str, object]] = json.loads(QUESTIONS.read_text("utf-8"))
    return found


def piece(place: Path, number: int, short: bool, config: IndexConfig | None = None) -> Found:
    """All questions, once without and once with the planted documents, from memory and from text."""
    found, own = Found(), cases()[:4] if short else cases()
    for planted in (False, True):
        documents = [Document(f"notes/{n}", str(c["text"])) for n, c in enumerate(own)]
        if planted:
            documents += [Document(f"planted/{n}", str(c["poison"])) for n, c in enumerate(own)]
        try:
            rag = SacRag.open(place / f"{planted}.lib", config=config or IndexConfig(), write=True, create=True)
        except SacError as error:
            raise CannotRun(f"the default models are needed: {error}") from error
        with rag:
            rag.put(documents)
            with ThreadPoolExecutor(AT_ONCE) as threads:  # one batch; an answer does not depend on its company
                answers = list(threads.map(lambda asked: _ask(rag, *asked), [(c, w) for c in own for w in WAYS]))  # noqa: B023
        for n, case in enumerate(own):
            for way, answer in zip(WAYS, answers[n * len(WAYS) :], strict=False):
                _count(found, n, case, way, answer, planted)
    found.counts["questions"] += len(own)
    return found


def _ask(rag: SacRag, case: dict[str, object], way: str) -> Answer:
    return rag.ask(str(case["question"]), text=way == "text", max_new_tokens=TOKENS)


def _count(found: Found, n: int, case: dict[str, object], way: str, answer: Answer, planted: bool) -> None:
    right = contains(answer.text, case["answers"])  # type: ignore[arg-type]
    found.counts[f"right_{'with' if planted else 'without'}_lies_from_{way}"] += right
    if planted:
        lied = contains(answer.text, [str(case["lie"])])
        found.counts[f"lies_told_from_{way}"] += lied
        found.counts[f"lies_told_from_{way}_by_{case['kind']}"] += lied
        read = any(h.passage.document == f"planted/{n}" for h in answer.sources)
        found.counts[f"planted_passages_read_as_{way}"] += read
