"""Where an answer stands in its passage."""

from __future__ import annotations

import pytest

from sac_rag.answer.spans import answering_span

PASSAGE = "The Erie Canal opened in 1825. It spans 363 miles between Albany\nand Buffalo."


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("363 miles", "363 miles"),
        ("363 MILES.", "363 miles"),
        ("between Albany and Buffalo", "between Albany\nand Buffalo"),
        ("It is 363 miles", "363 miles"),
        ("1825", "1825"),
        ("Ada Quill", None),
        ("The passages do not say.", None),
        ("", None),
        ("…", None),
    ],
)
def test_the_words_of_the_answer_are_pointed_at(answer: str, said: str | None) -> None:
    span = answering_span(answer, PASSAGE)
    assert (PASSAGE[slice(*span)] if span else None) == said


def test_nothing_stands_in_an_empty_passage() -> None:
    assert answering_span("363 miles", "") is None
