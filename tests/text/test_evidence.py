"""Sentences that a question is about."""

from __future__ import annotations

import pytest

from sac_rag.text.evidence import MOST_CHARACTERS, RANK_PRIOR, _sentences, evidence_of, evidence_text

CANAL = "The Erie Canal required feats of engineering.  It came to span 363 miles. Barges were\npulled by mules."
MOON = "The Moon has no air. A canal was once thought to be on Mars."


def said(texts, question, count=2):
    return [(s.rank, texts[s.rank][s.start : s.end]) for s in evidence_of(texts, question, count)]


def test_sentences_that_share_rare_words_with_the_question_are_taken():
    assert said([CANAL], "How many miles does it span?", 1) == [(0, "It came to span 363 miles.")]
    assert said([CANAL, MOON], "Is there air on the Moon?", 1) == [(1, "The Moon has no air.")]


def test_they_stand_in_reading_order_the_best_text_last():
    found = said([CANAL, MOON], "How many miles does the Erie Canal span, and who pulled the barges?", 4)
    assert found == [
        (1, "A canal was once thought to be on Mars."),
        (0, "The Erie Canal required feats of engineering."),
        (0, "It came to span 363 miles."),
        (0, "Barges were\npulled by mules."),
    ]


def test_a_sentence_of_a_lower_text_must_fit_better():
    same = "A lamp was lit in Port Harrow."
    other = "Nothing else is said here."
    assert said([same + " " + other, same], "Where was the lamp lit?", 1) == [(0, same)]
    assert RANK_PRIOR > 0


@pytest.mark.parametrize(
    ("texts", "question", "count"),
    [([CANAL], "Who?", 2), ([CANAL], "the of and", 2), ([], "canal", 2), (["", " \n "], "canal", 1), ([CANAL], "", 3),
     ([CANAL], "canal", 0)],
)  # fmt: skip
def test_where_nothing_fits_nothing_is_taken(texts, question, count):
    assert evidence_of(texts, question, count) == [] and evidence_text(texts, question, count) == ""


def test_sentences_are_given_a_line_each():
    assert evidence_text([CANAL], "miles, barges", 2) == "It came to span 363 miles.\nBarges were pulled by mules."


@pytest.mark.parametrize("count", [1, 3, 16])
def test_there_are_no_more_than_asked_for_and_each_once(count):
    text = " ".join(f"House {n} burns a lamp of kind {n % 3}." for n in range(40))
    found = evidence_of([text, text], "Which house burns which lamp?", count)
    assert len(found) == count == len(set(found))
    assert all(s.rank in (0, 1) and text[s.start : s.end].endswith(".") for s in found)


def test_ties_fall_to_the_first_and_chance_has_no_say():
    text = "A lamp fell. A lamp burns. A lamp shone."
    assert [s.start for s in evidence_of([text], "lamp", 2)] == [0, 13]


def test_what_is_said_twice_is_read_once():
    same, other = "A lamp burns.", "Some lamp shines in the harbour."
    assert said([f"{same} A  lamp\nburns. {other}", same], "lamp", 3) == [(0, same), (0, other)]


def test_words_of_scripts_without_blanks_are_found_within_phrases():
    thai = "กรุงเทพเป็นเมืองหลวงของประเทศไทย"
    assert said(["ไม่มีอะไรที่นี่", thai], "เมืองหลวง", 2) == [(1, thai)]
    assert said(["北京是中国的首都。长城很长。秦始皇建造了长城。"], "谁建造了长城", 1) == [(0, "秦始皇建造了长城。")]


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("\n".join(f"| house {n} | {n * 7} lamps |" for n in range(60)), "| house 41 | 287 lamps |"),
        ("def f():\n" + "\n".join(f"    lamp_{n} = {n}" for n in range(90)), "lamp_41 = 41"),
        ("word " * 1000 + "house 41 " + "word " * 1000, "house 41"),
        ("x" * 5000 + " 41 " + "灯" * 5000, "41"),
    ],
    ids=["table", "code", "no ends", "no blanks"],
)
def test_what_has_no_ends_of_sentences_is_cut(text, there):
    found = evidence_of([text], "What of house 41, lamp_41?", 16)
    assert any(there in text[s.start : s.end] for s in found)
    parts = [text[start:end] for start, end in _sentences(text)]
    assert max(map(len, parts)) <= MOST_CHARACTERS and all(p == p.strip() != "" for p in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
