"""Metrics against values worked out by hand from their definitions."""

from __future__ import annotations

import pytest

from sac_rag.evaluate.metrics import contains, normalise, rouge1, score, token_f1


@pytest.mark.parametrize(
    ("got", "want", "f1"),
    [
        ("The Denver Broncos!", "denver broncos", 1.0),
        ("Denver", "Denver Broncos", 2 / 3),
        ("in the city of Rome", "Rome", 2 * 0.25 / 1.25),
        ("a b b", "b b c", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        ("", "Rome", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_token_f1(got, want, f1):
    assert token_f1(got, want) == pytest.approx(f1)


def test_rouge1_uses_sets_and_case_and_cuts_at_full_stops():
    assert rouge1("Rome Rome Rome", "Rome") == pytest.approx(1.0, abs=1e-6)
    assert rouge1("rome", "Rome") == 0.0
    assert rouge1("St. Paul", "St Paul") == pytest.approx(1.0, abs=1e-6)
    assert rouge1("in Rome", "Rome") == pytest.approx(2 * 0.5 / 1.5, abs=1e-6)


def test_score_takes_the_best_answer_for_squad_and_the_first_for_the_paper():
    s = score("the Broncos", ["Denver Broncos", "Broncos"])
    assert s.em == 1.0 and s.f1 == 1.0 and s.em_raw == 0.0 and s.rouge1 == pytest.approx(0.5, abs=1e-6)
    assert score("Denver Broncos", ["Denver Broncos"]).em_raw == 1.0


def test_normalise():
    assert normalise(" The  U.S. Army's a-team ") == "us armys ateam"


def test_rouge_equals_the_package_of_the_authors():
    rouge = pytest.importorskip("rouge", reason="the rouge package is not installed").Rouge(metrics=["rouge-1"])
    pairs = [("in the city of Rome", "Rome"), ("St. Paul. Minn", "St Paul"), ("a b a c", "a c d"), ("x", "X")]
    for got, want in pairs:
        assert rouge1(got, want) == pytest.approx(rouge.get_scores(got, want)[0]["rouge-1"]["f"], abs=1e-6)


def test_contains_wants_whole_words():
    assert contains("It was the Clyde-Tombaugh, in 1930.", ("clydetombaugh",))
    assert contains("The Laughing Valley!", ("nowhere", "Laughing Valley"))
    assert not contains("1363 miles", ("363",)) and not contains("", ("363",))
