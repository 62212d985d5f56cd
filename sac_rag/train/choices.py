"""Questions that name their answer beside another one: "In what year did it open?" becomes "…, 1901 or 1887?".

The other one is a span of the same kind out of the same text: a year for a year, a name for a name. Half of a text's
questions stay as they are, so that a choice is made where one is offered and nowhere else.
"""

from __future__ import annotations

import random
import re

from sac_rag.train.cloze import spans_of

LONGEST = 8
"""Words of an answer that is offered, at most."""
_WORDS = re.compile(r"\w+")
_NONE = frozenset(("yes", "no"))


def offered(text: str, questions: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """(question, answer) pairs over `text`, about half of which offer the answer and another span of its kind."""
    found: dict[str, list[str]] = {}
    for words, kind in spans_of(text):
        found.setdefault(kind, []).append(words)
    return [
        (_choice(question, answer, found, rng) or question, answer) if rng.random() < 0.5 else (question, answer)
        for question, answer in questions
    ]


def _choice(question: str, answer: str, found: dict[str, list[str]], rng: random.Random) -> str:
    """The question with its answer and another offered, in either order; "" where nothing fits."""
    if answer.lower() in _NONE or len(answer.split()) > LONGEST or " or " in question:
        return ""
    kind = kind_of_answer(answer)
    own = set(_WORDS.findall(answer.lower()))
    others = [o for o in found.get(kind, ()) if not own & set(_WORDS.findall(o.lower()))]
    if not others:
        return ""
    pair = [answer, rng.choice(others)]
    rng.shuffle(pair)
    asked, pair_text = question.rstrip().rstrip("?").rstrip(), " or ".join(pair)
    return f"{asked}{rng.choice((',', ',', ':'))} {pair_text}?"


def kind_of_answer(answer: str) -> str:
    """The kind of span that an answer is: that of the longest span in it, "phrase" where there is none."""
    found = sorted(spans_of(f"It was {answer} .", short=True), key=lambda span: len(span[0]), reverse=True)
    return found[0][1] if found else "phrase"
