"""Texts that were handed out: known whole, and missed where they stand cut off or in another form."""

from __future__ import annotations

import json
import textwrap

import pytest

from sac_rag.answer.offered import Offered

CANAL = 'The Erie Canal spans 363 miles.\nIt joins "the Hudson" to the Great Lakes, and was dug by hand.'
TIDES = "Spring tides come when the Sun and the Moon are lined up.\nNeap tides come a week later."


@pytest.fixture
def offered() -> Offered:
    known = Offered()
    known.note(CANAL, "canal")
    known.note(TIDES, "tides")
    known.note("Short.", "short")
    return known


def anyone(tag: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("said", "altered"),
    [
        (f"Context:\n{CANAL}\n\nQuestion: how long?", 0),
        (f"{CANAL[:60]}…\n{TIDES[:50]}…", 2),
        (json.dumps([CANAL, TIDES]), 2),
        (repr(CANAL), 1),
        (textwrap.indent(TIDES, "    "), 1),
        (" ".join(CANAL.split()), 1),
        (f"{CANAL[:60]}\n\n{CANAL}", 0),  # it is read once, whole
        ("How long is the Erie Canal? The Erie Canal spans", 0),
        ("Short", 0),
        ("", 0),
    ],
)
def test_what_stands_in_another_form_is_counted(offered: Offered, said: str, altered: int) -> None:
    assert offered.altered([said], anyone) == altered
    assert offered.altered(["Be brief.", said], anyone) == altered


def test_one_passage_is_counted_once_and_only_for_who_may_read_it(offered: Offered) -> None:
    offered.note(f"by: Ann\n\n{TIDES}", "tides")  # the form that a model is shown
    assert offered.altered([TIDES[:50], TIDES[:49]], anyone) == 1
    assert offered.altered([TIDES[:50], CANAL[:50]], lambda tag: tag == "canal") == 1
    assert offered.altered([TIDES[:50]], lambda tag: False) == 0
