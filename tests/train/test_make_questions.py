"""Questions written by a model: what is asked for, what is kept, and that a stopped run goes on to the same file."""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.train.generation import instruction

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
script = importlib.import_module("make_questions")

TEXT = (
    "It was a long and rather cold winter there. In 1887 Ada Carver sold the old mill to Bert Dolan for 300 dollars, "
    "while Cleo Dahl kept the harbour bridge. Nobody had ever seen the town so quiet."
)
ROLES = {"1887", "Ada Carver", "Bert Dolan", "300", "Cleo Dahl", "old mill", "harbour bridge"}


def write(path, *rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_half_of_the_spans_are_of_one_sentence():
    for seed in range(20):
        spans = script.candidates(TEXT, 6, random.Random(seed))
        assert len(spans) == len({s.lower() for s in spans}) == 6 and all(s in TEXT for s in spans)
        assert len(ROLES & set(spans)) >= 3
        assert spans == script.candidates(TEXT, 6, random.Random(seed))
    many = Counter(s for seed in range(200) for s in script.candidates(TEXT, 2, random.Random(seed)))
    assert many["Ada Carver"] > many["harbour bridge"] > 0, "names rather than phrases"
    assert script.candidates("Nothing here.", 6, random.Random(0)) == []


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("Who sold the old mill?", ""),
        ("Who sold?", "too short"),
        ("What did the Ada Carver sell?", "holds its answer"),
        ("Did anybody sell the mill?", "closed"),
        ("Who sold the mill or the bridge?", "closed"),
    ],
)
def test_faults(question, wrong):
    assert script.fault(question, "Ada Carver", 4) == wrong


def test_passages_of_all_kinds_come_once_and_none_that_is_held_out(tmp_path):
    known = "This sentence of nine words stands in another file."
    titled = write(tmp_path / "t.jsonl.gz", {"context": "Mill\nA mill.\n\nDam\nA dam.", "qas": []},
                   {"context": f"Mill\nA mill.\n\nTest\nIt is short. {known}", "qas": []})  # fmt: skip
    texts = write(tmp_path / "x.jsonl.gz", {"text": "One.|Two.|Three.", "source": "books"}, {"text": "Two."})
    held = script.HeldOut.of([write(tmp_path / "h.jsonl.gz", {"context": f"Other. {known}", "qas": [
        {"question": "Who is it?", "answers": ["he"]}]})])  # fmt: skip
    assert held.questions == {"who is it"}
    files = [script.File(texts, 1.0), script.File(titled, 3.0, titled=True)]

    def cut(text, titled):
        assert titled == ("\n" in text)
        return text.split("|")

    found = list(script.drawn(files, held, cut, 0))
    assert sorted(text for text, _ in found) == ["Dam\nA dam.", "Mill\nA mill.", "One.", "Three.", "Two."]
    assert dict(found)["One."] == "books" and dict(found)["Dam\nA dam."] == "t"
    assert found == list(script.drawn(files, held, cut, 0))
    orders = {tuple(script.drawn(files, held, cut, seed)) for seed in range(9)}
    assert len(orders) > 3
    with pytest.raises(ConfigError, match="the weight of .*x.jsonl.gz is 0"):
        script.File(texts, 0.0).check()


def test_what_is_kept_is_what_the_answerer_agrees_with(monkeypatch):
    written = {
        "Ada Carver": ("Who sold the old mill?", "Ada Carver, of course"),
        "Bert Dolan": ("Who bought the old mill?", "Ada Carver"),
        "Cleo Dahl": ("Who sold the old mill?", "Cleo Dahl"),
        "1887": ("When was the mill sold?", "1887"),
        "300": ("How much?", "300"),
        "old mill": ("Known from a test?", "old mill"),
    }

    class Said:
        def __init__(self, answers):
            self.answers = answers

        def say(self, texts, asked, tokens, batch):
            return [[self.answers[a] for a in own] for own in asked]

    generator = Said({instruction(span): question for span, (question, _) in written.items()})
    answerer = Said(dict(written.values()) | {"Who sold the old mill?": "the Ada Carver"})
    monkeypatch.setattr(script, "candidates", lambda *_: list(written))
    given = argparse.Namespace(each=6, seed=0, batch=2, shortest=3, agreement=0.8)
    maker = script.Maker(generator, answerer, script.HeldOut(questions={"known from test"}), given)
    rows, counts = maker.make([(TEXT, "books")])
    kept = [{"question": "Who sold the old mill?", "answers": ["the Ada Carver", "Ada Carver"]},
            {"question": "When was the mill sold?", "answers": ["1887"]}]  # fmt: skip
    assert rows == [{"context": TEXT, "qas": kept, "source": "books"}]
    assert counts == {"asked": 4, "too short": 1, "asked before": 2, "other answer": 1, "kept": 2}
    assert maker.make([(TEXT, "books")])[0] == [], "none is made twice"


def test_parts_go_on_with_the_same_settings_alone(tmp_path):
    row = {"context": TEXT, "qas": [{"question": "a", "answers": ["b"]}] * 3, "source": "s"}
    path = tmp_path / "out.parts"
    script.Parts(path, {"seed": 0}).add(4, [row], Counter(kept=3))
    with path.open("a") as handle:
        handle.write('{"passages": 9, "counts": {"ke')
    parts = script.Parts(path, {"seed": 0})
    parts.add(2, [row], Counter(kept=3))
    again = script.Parts(path, {"seed": 0})
    assert (again.passages, again.kept, again.rows) == (6, 6, [row, row])
    assert [len(line["qas"]) for line in again.first(4)] == [3, 1] and len(again.first(3)) == 1
    with pytest.raises(ConfigError, match="begun with seed 0, now 1: give the same settings, or delete it"):
        script.Parts(path, {"seed": 1})


@pytest.fixture
def reader(tiny_base, tmp_path):
    """A Full-FT adapter of the random model."""
    import torch

    from sac_rag.compress import adapter
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.models.loading import load_base
    from sac_rag.models.sources import fingerprint_of

    card = adapter.Card(
        base=str(tiny_base),
        base_fingerprint=fingerprint_of(tiny_base),
        method="full-ft",
        ratios=(1.0,),
        lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"], "whole": True},
        layout=PromptLayout().to_mapping(),
    )
    model, tokenizer = load_base(tiny_base, torch.device("cpu"), torch.float32)
    adapter.save(adapter.build(model, tokenizer, card), card, tmp_path / "reader")
    return tmp_path / "reader"


def test_a_speaker_says_what_the_whole_prompt_alone_would_make_it_say(tiny_base, reader):
    from sac_rag.answer.engine import Engine
    from sac_rag.evaluate.prompts import answers_of, prompts_of
    from sac_rag.evaluate.readers import reader_of
    from sac_rag.train.data import Question

    engine = Engine(str(tiny_base), "full-ft", str(reader), device="cpu", dtype="float32")
    for parameter in engine.method.parameters().values():
        parameter.data.normal_(0, 0.3)  # a LoRA that does something
    texts, asked = [TEXT, "Ada keeps a mill.", "Nothing."], [["Who sold it?", "When?", "To whom?"], [], ["What?"]]
    contexts = [(t, tuple(Question("", q, ()) for q in own)) for t, own in zip(texts, asked, strict=True) if own]
    prompts = prompts_of(engine.method, contexts, reader_of("full-ft"), None).prompts
    alone = [answers_of(engine.reader, [prompt], 1)[0][0] for prompt in prompts]
    for batch in (1, 4):
        said = script.Speaker(engine).say(texts, asked, 32, batch)
        assert [*said[0], *said[2]] == alone and said[1] == []


def test_a_stopped_run_goes_on_to_the_same_file(tiny_base, reader, tmp_path, monkeypatch):
    names = "Ada Bert Cleo Dora Egon Fred Gina Hugo Ines Jack".split()
    texts = [{"text": f"In {1900 + i} the mayor {name} Carver sold {i + 20} mills to Paul {name}."}
             for i, name in enumerate(names)]  # fmt: skip
    data = write(tmp_path / "a.jsonl.gz", *texts)

    def run(name):
        given = [str(data), "--generator", str(reader), "--answerer", str(reader), "--model", str(tiny_base)]
        given += ["--output", str(tmp_path / name), "--agreement", "0", "--shortest", "1", "--each", "2"]
        return script.make(script.settings_of([*given, "--batch", "2", "--count", "14", "--dtype", "float32"]))

    found = run("whole")
    rows = [json.loads(line) for line in gzip.decompress((tmp_path / "whole").read_bytes()).splitlines()]
    asked = [qa["question"] for row in rows for qa in row["qas"]]
    assert found["questions"] == len(asked) == len(set(asked)) == 14 and found["kept"] >= 14
    assert all(qa["answers"][-1] in row["context"] for row in rows for qa in row["qas"])

    make, calls = script.Maker.make, []

    def stopped(self, group):
        calls.append(len(group))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return make(self, group)

    monkeypatch.setattr(script.Maker, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    assert not (tmp_path / "parts").exists()
    assert run("parts") == found and len(calls) > 2
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    calls.clear()
    assert run("parts") == found and not calls, "nothing is left to be made"


@pytest.mark.parametrize(
    ("more", "told"),
    [(["--count", "0"], "--count is 0; it must be 1 or more"), (["--agreement", "2"], "--agreement is 2"),
     (["--passage-tokens", "9"], "--passage-tokens is 9; it must lie in 32..510")],
)  # fmt: skip
def test_settings_out_of_range_are_named(more, told, capsys):
    with pytest.raises(SystemExit):
        script.settings_of(["a.jsonl", "--generator", "g", "--output", "o", *more])
    assert told in capsys.readouterr().err
