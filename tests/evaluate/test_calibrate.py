"""Calibrating on tiny models: wrong passages are wrong, stored runs serve, and the card keeps what was found."""

from __future__ import annotations

import json
import shutil

import pytest

from sac_rag.answer.confidence import Thresholds
from sac_rag.answer.engine import Engine
from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.errors import AdapterError, ConfigError
from sac_rag.evaluate import calibrate as core
from sac_rag.evaluate.calibrate import calibrate, check_writable, store, stored
from sac_rag.evaluate.harness import evaluate
from sac_rag.evaluate.metrics import contains
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.runs import Run
from sac_rag.evaluate.sources import mismatched
from sac_rag.evaluate.tasks import Task, load_task
from sac_rag.train.data import Question


@pytest.fixture
def own(tiny, tmp_path):
    """Keywords for the tiny models, with an adapter of the test's own."""
    shutil.copytree(tiny["adapter"], tmp_path / "adapter")
    kept = {k: v for k, v in tiny.items() if k != "full_ft_adapter"}
    return {**kept, "adapter": str(tmp_path / "adapter")}


def test_every_question_meets_a_passage_that_does_not_answer_it(write_set):
    task = load_task(write_set("lamps", contexts=12, questions=2))
    wrong = mismatched(task, seed=1)
    assert [qs for _, qs in wrong.contexts] == [qs for _, qs in task.contexts] and wrong.name != task.name
    for (text, questions), (other, _) in zip(task.contexts, wrong.contexts, strict=True):
        assert other != text and other in [t for t, _ in task.contexts]
        assert not any(contains(other, q.answers) for q in questions)
    assert mismatched(task, seed=1) == wrong != mismatched(task, seed=2)


def test_an_answer_that_stands_everywhere_gets_another_passage_all_the_same():
    asked = (Question("0", "Is it?", ("yes",)),)
    wrong = mismatched(Task("yes", (("yes it is", asked), ("yes it was", asked), ("yes it is", asked))))
    assert [text for text, _ in wrong.contexts] == ["yes it was", "yes it is", "yes it was"]
    with pytest.raises(ConfigError, match="yes has one context only"):
        mismatched(Task("yes", (("yes it is", asked), ("yes it is", asked))))


def test_calibrating_measures_what_was_answered(write_set, own, tmp_path):
    files = [write_set("lamps", contexts=5), write_set("keys", contexts=4, questions=1)]
    results = Results(tmp_path / "r")
    heard = []
    found = calibrate(files, ratios=(5, 15.0), results=results, listen=lambda *a: heard.append(a), **own)
    assert [c.ratio for c in found] == [5.0, 15.0] and results.taken == 0
    assert len(list((tmp_path / "r").glob("*.json"))) == 2 * 2 * 3
    assert {h[:2] for h in heard if h[2] == h[3]} >= {("lamps", "sac 5x"), ("keys (other passages)", "text")}
    for c in found:
        memory, text = c.abstaining
        assert (memory.reader, memory.ratio, text.reader, text.ratio) == ("memory", c.ratio, "text", None)
        assert memory.threshold == c.thresholds.abstain["memory"] and text.threshold == c.thresholds.abstain["text"]
        assert c.fallback.n == memory.n == text.n == 14 and sum(b.n for b in c.curve) == 28
        assert c.fallback.threshold == c.thresholds.fallback
        assert [(d.reader, d.threshold) for d in c.doubting] == list(c.thresholds.doubt.items())
    assert found[0].abstaining[1] == found[1].abstaining[1]

    again = Results(tmp_path / "r")
    runs = evaluate(files, readers=("text", "memory"), ratios=(5.0, 15.0), results=again, **own)
    assert again.taken == 6, "what was answered from the right passages is what `evaluate` stores"
    macro = {r.ratio: sum(x.f1 * x.n for x in runs if x.ratio == r.ratio and x.set != "macro") / 14 for r in runs}
    assert macro[5.0] == pytest.approx(found[0].fallback.f1_memory)
    assert macro[None] == pytest.approx(found[0].fallback.f1_text)

    settings = [json.loads(p.read_text())["settings"] for p in (tmp_path / "r").glob("lamps.memory.5x.*.json")]
    own_run, other_run = (
        again.find(Run, next(s for s in settings if s["track"] == track)) for track in ("gold", "mismatched")
    )
    assert [p.qid for p in own_run.predictions] == [p.qid for p in other_run.predictions]
    assert [p.logprob for p in own_run.predictions] != [p.logprob for p in other_run.predictions]


def test_a_report_measures_given_thresholds_without_choosing(write_set, own, tmp_path):
    file, results = write_set("lamps", contexts=5), Results(tmp_path / "r")
    (chosen,) = calibrate([file], results=results, **own)
    given = Thresholds({"memory": -1e-9, "text": None}, -1e-9, {"memory": -1e-9})
    (row,) = calibrate([file], given={5.0: given}, results=results, **own)
    assert row.thresholds is given and row.abstaining[0].kept == 0 and row.abstaining[0].f1_kept is None
    assert row.abstaining[1].kept == 1 and row.fallback.share == 1
    assert row.doubting[0].wrong == 1 and row.doubting[1].wrong == 0 and row.doubting[1].threshold is None
    assert row.fallback.f1_auto == pytest.approx(row.fallback.f1_text) and row.curve == chosen.curve


def test_the_card_keeps_thresholds_and_the_fingerprint_stays(write_set, own, tmp_path):
    folder = tmp_path / "adapter"
    before, weights = Card.read(folder), (folder / "adapter.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=f"ratio 15 --model {own['model']} --adapter mine --write"):
        stored(folder, [15.0], ["memory"], model=own["model"], adapter="mine")
    files = [write_set("lamps", contexts=4)]
    store(folder, calibrate(files, ratios=(5.0,), **own), "first")
    store(folder, found := calibrate(files, ratios=(15.0,), precision=0.6, **own), "second")
    card = Card.read(folder)
    assert set(card.calibration) == {"5", "15"} and card.calibration["15"]["commands"] == dict.fromkeys(
        ("memory", "text"), "second"
    )
    assert stored(folder, [15], ["text"], model="", adapter="") == {15.0: found[0].thresholds}
    assert card.calibration["15"]["falling_back"]["n"] == card.calibration["15"]["doubting"][0]["n"] == 8
    assert {**vars(card), "calibration": {}} == vars(before)
    assert (folder / "adapter.safetensors").read_bytes() == weights
    fresh = Engine(own["model"], "sac", own["adapter"], device="cpu", dtype="float32")
    assert fresh.adapter_sha256 == Engine.shared(own["model"], adapter=own["adapter"]).adapter_sha256


def test_readers_of_one_ratio_are_calibrated_one_after_the_other(write_set, own, tmp_path):
    folder, files = tmp_path / "adapter", [write_set("lamps", contexts=4)]
    with pytest.raises(ConfigError, match=r"calibrated at ratio 5, .*--reader memory\+2 --model"):
        stored(folder, [5.0], ["memory+2"], model=own["model"], adapter="default")
    store(folder, (both := calibrate(files, **own)), "first")
    with pytest.raises(ConfigError, match=r"for memory, text, not for memory\+2: run .*--ratio 5 --reader memory\+2 "):
        stored(folder, [5.0], ["memory+2"], model=own["model"], adapter="default")
    store(folder, (beside := calibrate(files, readers=["memory+2", "memory+2"], **own)), "second")
    (c,) = beside
    assert [r.reader for r in c.abstaining] == [r.reader for r in c.doubting] == ["memory+2"]
    assert c.fallback is None and c.curve == () and c.thresholds.fallback is None
    entry, (first,) = Card.read(folder).calibration["5"], both
    assert entry["commands"] == {"memory": "first", "text": "first", "memory+2": "second"}
    assert [r["reader"] for r in entry["abstaining"]] == ["memory", "text", "memory+2"]
    (found,) = stored(folder, [5.0], ["memory", "memory+2", "text"], model="", adapter="").values()
    assert found.abstain == {**first.thresholds.abstain, **c.thresholds.abstain}
    assert found.doubt == {**first.thresholds.doubt, **c.thresholds.doubt}
    assert found.fallback == first.thresholds.fallback
    store(folder, calibrate(files, readers=["memory+2"], precision=0.6, **own), "third")
    entry = Card.read(folder).calibration["5"]
    assert [r["reader"] for r in entry["doubting"]] == ["memory", "text", "memory+2"]
    assert entry["commands"]["memory+2"] == "third" and entry["commands"]["text"] == "first"


@pytest.mark.parametrize("reader", ["closed", "mixed", "full-ft", "text+2", "memory+0", "memories"])
def test_other_readers_are_not_calibrated(reader, own):
    with pytest.raises(ConfigError, match="reader"):
        calibrate(["any"], readers=["memory", reader], **own)


def test_a_card_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path, tiny_adapter, monkeypatch):
    shutil.copytree(tiny_adapter, tmp_path / "a")
    check_writable(tmp_path / "a")
    monkeypatch.setattr(core.os, "access", lambda *_: False)
    with pytest.raises(AdapterError, match="copy the adapter to a folder of your own"):
        check_writable(tmp_path / "a")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(adapter, "write_atomic", refuse)
    with pytest.raises(AdapterError, match=r"card\.json cannot be written \(Permission denied\)"):
        store(tmp_path / "a", [], "nothing")


@pytest.mark.parametrize("precision", [0.0, 1.5])
def test_a_precision_out_of_range_is_an_error(own, precision):
    with pytest.raises(ConfigError, match=f"precision is {precision}"):
        calibrate(["any"], precision=precision, **own)


def test_what_cannot_be_compressed_is_not_calibrated(own):
    with pytest.raises(ConfigError, match=r"ratio is 0\.5; it must be at least 1"):
        calibrate(["any"], ratios=(0.5,), **own)
    with pytest.raises(ConfigError, match="'full-ft' .*--reader full-ft"):
        calibrate(["any"], method="full-ft", **own)
