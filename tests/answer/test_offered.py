"""Texts that were handed out: known whole, and missed where they stand cut off or in another form."""

from __future__ import annotations

import json
import random
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


def test_what_no_longer_fits_is_forgotten_by_size_and_told() -> None:
    texts = [f"Passage number {n} speaks of the canal of year {n}, and no other one." for n in range(1030)]
    known = Offered(limit=sum(map(len, texts[6:])))
    for n, text in enumerate(texts):
        known.note(text, f"<{n}>")
    assert known.put_in("\n\n".join(texts[5:8]), anyone) == f"{texts[5]}\n\n<6>\n\n<7>"
    assert known.put_in(texts[-1], anyone) == "<1029>"
    assert known.altered([texts[5]], anyone) == 1
    assert known.altered([texts[6]], anyone) == 0
    known.note(texts[5], "<5>")  # found again
    assert known.put_in(texts[5], anyone) == "<5>" and known.altered([texts[5]], anyone) == 0
    assert known.put_in(texts[6], anyone) == texts[6]


def test_a_forgotten_text_is_not_missed_where_another_of_its_beginning_stands() -> None:
    ends = ("its length.", "its depth.", "its age.")
    first, second, third = (f"Of the canal this much is known: {end}" for end in ends)
    known = Offered(limit=len(first) + len(third))
    for text in (first, second, third, first):
        known.note(text, text[-4:])
    assert known.put_in(second, anyone) == second
    assert known.altered([f"{first}\n{third}"], anyone) == 0


def test_thousands_of_texts_are_known() -> None:
    known = Offered()
    texts = [f"{n} is a flat of the house, which is let to a member." for n in range(5000)]
    for n, text in enumerate(texts):
        known.note(text, f"<{n}>")
    assert known.put_in("\n".join(texts), anyone) == "\n".join(f"<{n}>" for n in range(5000))


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_found_as_by_looking_for_each(seed: int) -> None:
    draw = random.Random(seed)
    known, kept = Offered(limit=400), dict[str, str]()
    for n in range(40):
        text = "".join(draw.choice("ab \n") for _ in range(draw.choice([1, 5, 23, 24, 25, 60]))).strip()
        if text:
            known.note(text, f"<{n}>")
            kept.pop(text, None)
            kept[text] = f"<{n}>"
        while sum(map(len, kept)) > 400:
            kept.pop(next(iter(kept)))
        said = "\n".join([*draw.sample(list(kept), min(3, len(kept))), "abab"])
        asked = set[str]()
        known.put_in(said, lambda tag, asked=asked: bool(asked.add(tag)))  # type: ignore[misc]
        assert asked == {tag for text, tag in kept.items() if text in said}
