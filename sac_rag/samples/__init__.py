"""Documents and questions for a first try: some seventy pages of openly licensed text, and questions with answers.

`NOTICE.md`, beside this file, names the source and the licence of every document.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class SampleQuestion:
    """A short factual question about one sample document."""

    question: str
    answers: tuple[str, ...]
    """Accepted answers, the best first; each occurs literally in the document."""
    document: str
    """File name inside `documents()`."""


def documents() -> Path:
    """The folder with the sample documents."""
    return _HERE / "documents"


def questions() -> list[SampleQuestion]:
    """The questions of `questions.json`, those for a demonstration first."""
    rows = json.loads((_HERE / "questions.json").read_text(encoding="utf-8"))
    return [SampleQuestion(row["question"], tuple(row["answers"]), row["document"]) for row in rows]
