"""Questions turned round: a question is to be said for an answer that stands in the text."""

from __future__ import annotations

import json

import pytest

from sac_rag.errors import TrainingError
from sac_rag.train.data import Source
from sac_rag.train.generation import instruction, is_open, turned
from sac_rag.train.specs import ASK, kind_of

TEXT = "The mill of Ada Carver opened in 1901. Bert Dolan sold it to the town, and yes, it burnt."


@pytest.mark.parametrize(
    ("question", "answers", "found"),
    [
        ("Who owned it?", ("Ada Carver",), "Ada Carver"),
        ("Who owned it?", ("Mrs. Carver", " Carver "), "Carver"),
        ("when did it open", ("1901",), "1901"),
        ("Isabel bought what?", ("it",), "it"),
        ("Who owned it?", ("Mrs. Carver",), None),
        ("What of it?", ("yes",), None),
        ("Did it burn?", ("it burnt",), None),
        ("Wasn't it sold?", ("sold it",), None),
        ("Which year was it, 1901 or 1887?", ("1901",), None),
    ],
)
def test_what_is_turned_round(question, answers, found):
    assert turned(TEXT, question, answers) == ((instruction(found), question) if found else None)


def test_an_instruction_names_the_answer():
    assert instruction("Ada Carver") == 'Ask a question that is answered by "Ada Carver".'
    assert is_open("Who was it?") and not is_open("Is it?") and not is_open("Red or blue?")


def test_a_source_asks_for_its_own_questions(tmp_path):
    rows = [
        {"context": TEXT, "qas": [{"question": " Who owned it? ", "answers": ["Ada Carver"]},
                                  {"question": "Did it burn?", "answers": ["yes"]},
                                  {"question": "When did it open?", "answers": ["in 1900", "1901"]}]},
        {"context": "Nothing to ask for stands here.", "qas": [{"question": "Is it so?", "answers": ["no"]}]},
        {"context": "Cleo Dahl won.", "qas": [{"question": "Who won?", "answers": ["Cleo Dahl"]}]},
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    kind, name = kind_of(f"{ASK}{path}")
    source = Source(name, lambda text: list(text.encode()), kind=kind)
    drawn = [source.draw(500) for _ in range(4)]
    asked = {bytes(c.ids).decode(): [tuple(bytes(part).decode() for part in pair) for pair in c.pairs] for c in drawn}
    assert source.name == "ask:a.jsonl" and asked == {
        TEXT: [(instruction("Ada Carver"), "Who owned it?"), (instruction("1901"), "When did it open?")],
        "Cleo Dahl won.": [(instruction("Cleo Dahl"), "Who won?")],
    }
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(TrainingError, match="ask:a.jsonl: it has no question that can be turned round"):
        Source(path, lambda text: list(text.encode()), kind=ASK)
