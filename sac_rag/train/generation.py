"""Question generation: the questions of a file turned round, so that a model learns to ask for a given answer.

What is asked becomes an instruction that names the answer, and what is to be said becomes the question (answer-aware
question generation: Zhou et al. 2017, "Neural Question Generation from Text"). `scripts/make_questions.py` gives the
same instruction to what was trained.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

INSTRUCTION = 'Ask a question that is answered by "{}".'
_CLOSED = re.compile(
    r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must)(?:n't)?\s", re.I
)
_NONE = frozenset(("yes", "no"))


def instruction(answer: str) -> str:
    """What makes a generator ask for an answer."""
    return INSTRUCTION.format(answer)


def is_open(question: str) -> bool:
    """Whether a question has to be answered out of the text: it is no yes/no question, and offers no "A or B"."""
    return not _CLOSED.match(question) and " or " not in question


def turned(text: str, question: str, answers: Sequence[str]) -> tuple[str, str] | None:
    """(instruction, question) for the first answer that stands in the text; None without one, and for a question that
    is not open."""
    found = next((a.strip() for a in answers if a.strip() in text and a.strip().lower() not in _NONE), None)
    return (instruction(found), question) if found and is_open(question) else None
