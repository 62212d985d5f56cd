"""How an answer is shown: its text as it comes, then where it is from; or all of it as one line of JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sac_cli import console

if TYPE_CHECKING:
    from sac_rag.answer.stream import Stream
    from sac_rag.config import AskConfig
    from sac_rag.pipeline import SacRag
    from sac_rag.records import Answer, Hit
    from sac_rag.warm.client import Heard, Warm

PREVIEW = 60
"""Characters of a passage that a table shows."""


def speak(stream: Stream | Heard) -> Answer:
    """Print an answer as it comes."""
    begun = False
    for piece in stream:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        console.write(piece)
    console.write("\n")
    for notice in stream.answer.notices:
        console.notice(notice)
    if stream.answer.doubtful:
        console.hint(f"doubtful: most answers of such confidence ({stream.answer.confidence:.2f}) are wrong")
    return stream.answer


def show_sources(answer: Answer) -> None:
    """Where an answer is from: number, document, span, score and how the passage begins; of one with sentences that
    were read as text, these, each in quotation marks."""
    if not answer.sources or console.state.quiet:
        return
    if not console.is_terminal():
        console.write("\n")
    console.table(
        ("n", "document", "span", "score", "text"),
        [
            (
                n,
                console.name(h.passage.document),
                f"{h.passage.start}-{h.passage.end}",
                f"{h.score:.3f}",
                console.one_line(_said(h, answer), PREVIEW),
            )
            for n, h in enumerate(answer.sources, 1)
        ],
        numbers=("n", "score"),
        cut="text",
    )


def _said(hit: Hit, answer: Answer) -> str:
    """What a table shows of a passage."""
    read = [f'"{sentence.text}"' for sentence in answer.evidence if sentence.passage == hit.passage.id]
    return " ".join(read) or hit.passage.text


def warm_up(rag: SacRag | Warm, question: str, ask: AskConfig, where: Mapping[str, Any] | None = None) -> None:
    """One throw-away token each way, so that first-use costs distort neither of two timings."""
    short = dataclasses.replace(ask, max_new_tokens=1)
    for text in (False, True):
        rag.ask(question, short, where=where, text=text)


def both_ways(rag: SacRag | Warm, question: str, ask: AskConfig, **given: Any) -> tuple[Answer, Answer]:
    """The same question as `ask` says (compressed memory, unless it says otherwise) and from plain text. Both times
    include retrieval, the first also loading; both searches find the same passages. given: where and schema, as of
    `SacRag.ask`."""
    return rag.ask(question, ask, **given), rag.ask(question, ask, text=True, **given)


def speedup(compressed: Answer, text: Answer) -> dict[str, float]:
    """How many times faster the compressed answer was."""
    return {
        "first_token": _ratio(text.timings.first_token_s, compressed.timings.first_token_s),
        "total": _ratio(text.timings.total_s, compressed.timings.total_s),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0


def show_both(compressed: Answer, text: Answer) -> None:
    """Two answers side by side, with what each cost."""
    gain, fewer = speedup(compressed, text), _ratio(text.usage.attended, compressed.usage.attended)
    rows: list[tuple[object, ...]] = [
        ("answer", compressed.text, text.text, ""),
        ("time to first token (s)", *_seconds("first_token_s", compressed, text), f"{gain['first_token']:.1f}x faster"),
        ("seconds in all", *_seconds("total_s", compressed, text), f"{gain['total']:.1f}x faster"),
        ("of it retrieval", *_seconds("retrieve_s", compressed, text), ""),
        ("of it loading", *_seconds("load_s", compressed, text), ""),
        ("tokens attended", compressed.usage.attended, text.usage.attended, f"{fewer:.1f}x fewer"),
        ("confidence", *map(_confidence, (compressed, text)), ""),
        ("passages", len(compressed.sources), len(text.sources), ""),
    ]
    head = ("", "compressed", "text", "")
    console.table(head, rows if console.is_terminal() else [head, *rows])
    for notice in dict.fromkeys([*compressed.notices, *text.notices]):
        console.notice(notice)


def _seconds(name: str, *answers: Answer) -> list[str]:
    return [f"{getattr(a.timings, name):.3f}" for a in answers]


def _confidence(answer: Answer) -> str:
    return f"{answer.confidence:.2f}" + ", doubtful" * answer.doubtful


def both_dict(compressed: Answer, text: Answer) -> dict[str, Any]:
    return {"compressed": compressed.account(), "text": text.account(), "speedup": speedup(compressed, text)}


def summary(answers: list[Answer], right: int, slot_bytes: int) -> dict[str, Any]:
    """What several answers cost in the middle, and how many were right."""
    from statistics import median

    slots = median(a.usage.attended for a in answers)
    return {
        "first_token_s": median(a.timings.first_token_s for a in answers),
        "tokens_attended": slots,
        "kv_bytes": int(slots * slot_bytes),
        "right": right,
        "questions": len(answers),
    }
