"""Data files: every kind that is promised, and errors that name the line."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from sac_rag.errors import TrainingError
from sac_rag.train.data import SUMMARISE, Mixture, Source, read_contexts

MRQA = {"context": "Ada went to Rome.", "qas": [{"qid": "1", "question": " Who? ", "answers": ["Ada", ""]}]}
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "Ada went to Rome.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]},
                        {"id": "2", "question": "Why?", "answers": []},
                        {"id": "3", "question": "How?", "answers": [{"text": " ", "answer_start": 3}]},
                    ],
                }
            ]
        }
    ]
}


def encode(text):
    return list(text.encode())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("name", "body", "questions"),
    [
        ("a.jsonl", json.dumps({"header": {"dataset": "x"}}) + "\n" + json.dumps(MRQA) + "\n\n", 1),
        ("a.json", json.dumps(SQUAD), 1),
        ("a.jsonl", json.dumps({"text": "Ada went to Rome."}), 0),
        ("a.txt", "Ada went to Rome.", 0),
    ],
)
def test_kinds(tmp_path, name, body, questions, zipped):
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(body.encode()) if zipped else body.encode())
    (found,) = [c for c in read_contexts(path) if c.text]
    assert found.text == "Ada went to Rome." and len(found.questions) == questions
    assert all(q.question == "Who?" and q.answers == ("Ada",) for q in found.questions)


def test_summaries_are_questions(tmp_path):
    items = [
        {"query": "", "summary": "Short.", "references": ["Brief.", "Short."]},
        {"query": "Who went?", "summary": "Ada."},
        {"query": "Nothing", "summary": " "},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"document": "Ada went to Rome.", "items": items, "source": "s"}))
    (found,) = read_contexts(path)
    assert [(q.question, q.answers) for q in found.questions] == [
        (SUMMARISE, ("Short.", "Brief.")),
        ("Who went?", ("Ada.",)),
    ]


@pytest.mark.parametrize(
    "answers",
    [
        ["Paris", " ", "the city"],
        [{"text": "Paris", "answer_start": 3}, {"text": "the city", "answer_start": 9}],
        {"text": ["Paris", "the city"], "answer_start": [3, 9]},
    ],
)
def test_answers_are_read_in_the_shapes_that_people_write(tmp_path, answers):
    line = {"context": "In Paris.", "qas": [{"question": "Where?", "answers": answers}]}
    none = {"question": "?", "answers": None}
    alone = {"context": "In Paris.", "qas": [{"question": "Where?", "answers": "Paris"}, none]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(alone))
    first, second = read_contexts(tmp_path / "a.jsonl")
    assert [q.answers for q in first.questions] == [("Paris", "the city")]
    assert [q.answers for q in second.questions] == [("Paris",)]


def test_pretraining_cuts_long_contexts_that_have_questions(tmp_path):
    line = {"context": "word " * 400, "qas": [{"question": "Which?", "answers": ["word"]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    found = Source(tmp_path / "a.jsonl", encode, plain=True).draw(64)
    assert len(found.ids) == 64 and found.pairs == ()
    with pytest.raises(TrainingError, match="raise --first-context and --max-context"):
        Source(tmp_path / "a.jsonl", encode).draw(64)


def broken_gzip():
    packed = bytearray(gzip.compress(random.Random(1).randbytes(4000)))
    packed[2000] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.jsonl", b'{"context": "x", "qas": [3]}', "a.jsonl:1: a question is 3"),
        ("a.jsonl", b'{"context": "x", "qas": [{"question": "?", "answers": [3]}]}', r"a.jsonl:1: answers are \[3\]"),
        ("a.txt.gz", broken_gzip(), "does not parse"),
        ("a.jsonl", b'{"context": 3}', "a.jsonl:1"),
        ("a.jsonl", b"{}\n{", "a.jsonl"),
        ("a.jsonl", b"[1]", "got list"),
        ("a.json", b'{"data": [{}]}', "paragraphs"),
        ("a.csv", b"x", "unknown kind"),
        ("a.txt.gz", b"not gzip", "does not parse"),
        ("a.txt", b"\xff\xfe\xfa", "does not parse"),
    ],
)
def test_bad_files_are_named(tmp_path, name, body, message):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(TrainingError, match=message):
        list(read_contexts(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match="nowhere.jsonl"):
        list(read_contexts(tmp_path / "nowhere.jsonl"))


def rows(path, count, length=4):
    lines = [json.dumps({**MRQA, "context": f"{i:0{length}d}"}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def test_every_context_comes_once_an_epoch_and_order_resumes(tmp_path):
    path = rows(tmp_path / "a.jsonl", 7)
    mixture = Mixture([Source(path, encode)], seed=1)
    drawn = [bytes(mixture.draw(99).ids) for _ in range(14)]
    assert sorted(drawn[:7]) == sorted(drawn[7:]) and len(set(drawn)) == 7 and drawn[:7] != drawn[7:]
    again = Mixture([Source(path, encode)], seed=1)
    for _ in range(5):
        again.draw(99)
    resumed = Mixture([Source(path, encode)], seed=1)
    resumed.restore(again.state())
    assert [bytes(resumed.draw(99).ids) for _ in range(9)] == drawn[5:]


def test_weights_are_shares(tmp_path):
    a, b = rows(tmp_path / "a.jsonl", 9), rows(tmp_path / "b.jsonl", 9, length=5)
    mixture = Mixture([Source(a, encode, weight=3.0), Source(b, encode, weight=1.0)])
    lengths = [len(mixture.draw(99).ids) for _ in range(400)]
    assert 250 < lengths.count(4) < 350


@pytest.mark.parametrize("kind", ["", "quote:", "cloze:"])
def test_texts_that_are_all_too_short_are_said_to_be(tmp_path, kind):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"Ada went to Rome in {i}."}) + "\n" for i in range(4))
    )
    source = Source(tmp_path / "a.jsonl", encode, kind=kind)
    with pytest.raises(TrainingError, match=r"a\.jsonl: no .* of( at least)? 32 tokens") as error:
        source.draw(192)
    assert "raise" not in str(error.value)
    if kind == "quote:":  # cut to what is allowed, a long text is as short
        (tmp_path / "b.jsonl").write_text(json.dumps({"text": "Ada went to Rome. " * 20}))
        with pytest.raises(TrainingError, match="raise --first-context and --max-context"):
            Source(tmp_path / "b.jsonl", encode, kind=kind).draw(20)


def test_too_long_contexts_are_skipped_and_said_if_all_are(tmp_path):
    source = Source(rows(tmp_path / "a.jsonl", 3, length=50), encode)
    with pytest.raises(TrainingError, match="at most 20 tokens"):
        source.draw(20)
