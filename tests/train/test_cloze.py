"""Cloze questions: honest answers, repeatable draws, and no text that takes long."""

from __future__ import annotations

import json
import random
import time

import pytest

from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train.cloze import cloze_questions
from sac_rag.train.data import CLOZE, CLOZES, Mixture, Source
from sac_rag.train.run import _checked

TEXT = (
    "The Erie Canal was opened on 26 October 1825 by Governor DeWitt Clinton of New York. It is 584 kilometres long, "
    "and its 83 locks lift boats from the Hudson River to Lake Erie. Farmers sent wheat by barge; the price of freight "
    "fell from $100 to $10 a ton within 10 years. By then the village of Buffalo had become a busy harbour."
)
OTHER = (
    "Magnetism was known to the Greeks as early as the sixth century. William Gilbert, a physician in London, wrote a "
    "book about lodestones in 1600, and showed with small models that the whole Earth behaves like one of them. "
)


def encode(text):
    return list(text.encode())


def test_answers_are_stretches_of_the_text_and_not_in_their_questions():
    for seed in range(40):
        pairs = cloze_questions(TEXT, 9, random.Random(seed))
        assert len(pairs) == 9 and len({answer.lower() for _, answer in pairs}) == 9
        for question, answer in pairs:
            assert answer in TEXT and answer.lower() not in question.lower()
            assert question.endswith("?") and len(question.split()) >= 4
    assert len(cloze_questions(TEXT, 3, random.Random(0))) == 3


def test_names_dates_and_numbers_are_asked_for_by_their_question_words():
    asked = {
        answer: question for seed in range(60) for question, answer in cloze_questions(TEXT, 9, random.Random(seed))
    }
    assert {"26 October 1825", "Governor DeWitt Clinton of New York", "10 years", "Hudson River"} <= set(asked)
    for answer, words in (("26 October 1825", ("when", "date")), ("83", ("how many", "how much", "number"))):
        assert any(word in asked[answer].lower() for word in words), asked[answer]


def test_what_is_drawn_depends_on_text_and_seed_alone():
    """Pinned: runs on record were trained on these very questions."""
    assert cloze_questions(TEXT, 3, random.Random(7)) == PINNED
    assert cloze_questions(TEXT, 3, random.Random(8)) != PINNED
    state = random.getstate()
    cloze_questions(TEXT, 9, random.Random(7))
    assert random.getstate() == state


PINNED = [
    ("Farmers sent wheat by barge; the price of what from $100 to $10 a ton within 10 years?", "freight fell"),
    ("The Erie Canal was opened on 26 October 1825 by which?", "Governor DeWitt Clinton of New York"),
    ("What number is 584 kilometres long, and its lift boats from the Hudson River to Erie?", "83"),
]

HOSTILE = {
    "one sentence without end": "word " * 20_000,
    "a name a hundred thousand times": "one two three four five six " + "Ab;" * 33_000,
    "many such sentences": ("one two three four five six " + "Ab;" * 1200 + ". ") * 27,
    "one number": "one two three four five six " + "1," * 50_000 + "a",
    "one word": "A" * 100_000,
    "a name of marks": "A" + "&-" * 50_000 + " b c d e f g",
    "marks": "one two three four five six a" + "_" * 100_000,
    "stops": "a" + "." * 100_000,
    "quotes": "a.'" + "'" * 100_000 + "x",
    "blanks": "one two three four five six" + " " * 100_000 + "seven. ",
    "lines": "\n" * 100_000,
    "Chinese": "漢字" * 50_000,
    "Japanese": "漢字かな交じり文。" * 11_000,
    "Arabic": "وصلت السفينة إلى الميناء في الصباح الباكر، ثم غادرت. " * 1900,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_text_takes_long_or_breaks_the_promise(kind):
    """Processor time, so that a busy machine does not fail it; by the square of the length these take minutes."""
    text = HOSTILE[kind]
    began = time.process_time()
    pairs = cloze_questions(text, 5, random.Random(0))
    assert time.process_time() - began < 8
    assert all(answer in text and answer.lower() not in question.lower() for question, answer in pairs)
    assert all(len(question) + len(answer) < 4100 for question, answer in pairs)


@pytest.mark.parametrize("kind", ["one sentence without end", "one word", "stops", "lines", "Chinese", "Japanese"])
def test_text_without_english_sentences_gives_no_questions(kind):
    assert cloze_questions(HOSTILE[kind], 5, random.Random(0)) == []


def test_numbers_are_found_in_other_scripts():
    text = "Быстрая коричневая лиса прыгает через ленивую собаку в 1984 году. "
    for question, answer in cloze_questions(text, 5, random.Random(1)):
        assert answer in text and answer not in question


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"context": f"Part {i}. {t}", "qas": []} for i, t in enumerate([TEXT, OTHER, TEXT + " " + OTHER])]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def drawn(mixture, count):
    return [
        (bytes(c.ids), [(bytes(q), bytes(a)) for q, a in c.pairs]) for c in (mixture.draw(400) for _ in range(count))
    ]


def test_a_cloze_source_resumes_exactly_and_asks_anew_each_epoch(texts):
    def mixture():
        return Mixture([Source(texts, encode, seed=3, kind=CLOZE)], seed=3)

    whole = drawn(mixture(), 9)
    for text, pairs in whole:
        assert 1 <= len(pairs) <= CLOZES and len(text) <= 400
        assert all(answer in text and answer.lower() not in question.lower() for question, answer in pairs)
    assert len({str(pairs) for _, pairs in whole}) == 9, "each epoch has its own questions"
    begun = mixture()
    drawn(begun, 4)
    resumed = mixture()
    resumed.restore(begun.state())
    assert drawn(resumed, 5) == whole[4:]


def test_a_long_text_is_cut_at_a_sentence(texts):
    source = Source(texts, encode, kind=CLOZE)
    for _ in range(6):
        assert source.draw(200).ids[-1:] in ([ord(" ")], [ord(".")])


def test_checkpoints_tell_a_file_from_the_questions_made_of_it(texts):
    made, own = Source(texts, encode, kind=CLOZE), Source(texts, encode)
    assert (made.name, own.name) == ("cloze:texts.jsonl", "texts.jsonl")
    with pytest.raises(TrainingError, match="cloze:texts"):
        Mixture([own]).restore(Mixture([made]).state())
    both = [(f"cloze:{texts}", 1.0), (str(texts), 1.0)]
    assert _checked(both) == both
    with pytest.raises(ConfigError, match=r"'cloze:texts\.jsonl'"):
        _checked([both[0], (f"cloze:other/{texts.name}", 1.0)])


def test_texts_that_no_question_can_be_made_of_are_said_to_be_so(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 2 3\n" * 40)
    with pytest.raises(TrainingError, match=r"cloze:numbers\.txt: no questions"):
        Source(path, encode, kind=CLOZE).draw(200)


def test_a_window_of_a_text_without_blanks_is_no_longer_than_others(tmp_path):
    path = tmp_path / "signs.txt"
    path.write_text("x" * 90_000)
    asked: list[int] = []

    def heard(text):
        asked.append(len(text))
        return list(range(len(text)))

    assert len(Source(path, heard).draw(100).ids) == 100 and asked == [800]
