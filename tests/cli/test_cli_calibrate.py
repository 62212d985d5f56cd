"""`sac calibrate` on toys: it prints, it writes, and `sac ask` acts on what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac, Toys

SHORT = {"SAC_MAX_NEW_TOKENS": "8", "SAC_DTYPE": "float32"}


def questions(name: str, first: int = 0) -> str:
    rows = [
        {
            "context": f"The lamp of house {i} burned oil until {1900 + i}.",
            "qas": [{"qid": str(i), "question": f"Until when did lamp {i} burn?", "answers": [str(1900 + i)]}],
        }
        for i in range(first, first + 6)
    ]
    Path(name).write_text("\n".join(map(json.dumps, rows)))
    return name


@pytest.fixture
def mine(toys: Toys) -> Path:
    """./mine: an adapter of the test's own."""
    return Path(shutil.copytree(toys.adapter, "mine")).resolve()


@pytest.fixture
def flags(toys: Toys, mine: Path) -> tuple[str, ...]:
    return f"--model={toys.base}", f"--adapter={mine}", "--dtype=float32", "--device=cpu"


def calibration(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text()).get("calibration")


def test_thresholds_are_printed_and_only_written_when_asked(sac: Sac, mine: Path, flags: tuple[str, ...]) -> None:
    command = ("calibrate", questions("dev.jsonl"), "--ratio", "5,15", "--limit", "5", "--results", "kept", *flags)
    done = sac(*command)
    assert done.code == 0, done.err
    lines = [line.split("\t") for line in done.out.splitlines()]
    assert [(r[0], r[1], len(r)) for r in lines[:3]] == [("memory", "5", 10), ("memory", "15", 10), ("text", "", 10)]
    assert [(r[0], r[1], len(r)) for r in lines[3:6]] == [("memory", "5", 8), ("memory", "15", 8), ("text", "", 8)]
    assert [(r[0], r[1], len(r)) for r in lines[6:8]] == [("memory", "5", 9), ("memory", "15", 9)]
    assert [r[1] for r in lines[8:]] == ["5"] * 5 + ["15"] * 5
    assert calibration(mine) == {}

    written = sac(*command, "--write", "--json")
    assert written.code == 0 and "6 runs were taken from kept" in written.err
    assert set(written.json) == {
        *("abstaining", "doubting", "falling_back", "curve"),
        *("versions", "fingerprints", "written"),
    }
    assert written.json["written"] is True and set(calibration(mine)) == {"5", "15"}
    entry = calibration(mine)["15"]
    said = "sac calibrate dev.jsonl --ratio 5,15 --limit 5 --seed 0"
    assert entry["commands"] == {"memory": said, "text": said}
    beside = sac("calibrate", questions("dev.jsonl"), "--reader", "memory+2", "--limit=5", "--write", *flags)
    assert beside.code == 0 and [line.split("\t")[:2] for line in beside.out.splitlines()] == [["memory+2", "5"]] * 2
    assert calibration(mine)["5"]["commands"]["memory+2"].startswith(
        "sac calibrate dev.jsonl --reader memory+2 --ratio"
    )
    assert [r["threshold"] for r in written.json["abstaining"]][1:] == [entry["abstain"][r] for r in ("memory", "text")]

    report = sac("calibrate", "--report", questions("test.jsonl", 20), "--ratio", "15", "--json", *flags)
    assert report.code == 0, report.err
    assert [r["threshold"] for r in report.json["abstaining"]] == [entry["abstain"][r] for r in ("memory", "text")]
    assert report.json["abstaining"][0]["n"] == 6 and report.json["written"] is False


def test_asking_acts_on_the_card(sac: Sac, toys: Toys, mine: Path, documents: Path) -> None:
    made = {**toys.environment, "SAC_ADAPTER": str(mine)}
    assert sac("index", "docs", "-q", **made).code == 0
    refused = sac("ask", "Where is the key?", "--abstain", **SHORT)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"sac calibrate FILE… --ratio 5 --model {toys.base} --adapter {mine} --write" in refused.err

    card = json.loads((mine / "card.json").read_text())
    entry = {"abstain": {"memory": 0.0, "text": None}, "fallback": 0.0}
    (mine / "card.json").write_text(json.dumps({**card, "calibration": {"5": entry}}))
    memory = sac("ask", "Where is the key?", "--json", **SHORT).json
    assert memory["fidelity"] == "memory" and memory["confidence"] < 0 and "withheld" not in memory
    silent = sac("ask", "Where is the key?", "--json", "--abstain", **SHORT).json
    assert silent["abstained"] and silent["withheld"] == memory["answer"] and silent["sources"] == memory["sources"]
    assert silent["answer"] == "The passages do not say."
    spoken = sac("ask", "Where is the key?", SAC_ABSTAIN="1", **SHORT)
    assert spoken.out.startswith("The passages do not say.\n") and "docs/" in spoken.out

    auto = sac("ask", "Where is the key?", "--json", "--fidelity", "auto", **SHORT).json
    text = sac("ask", "Where is the key?", "--json", "--text", **SHORT).json
    assert auto["fell_back"] and auto["fidelity"] == "text" and auto["answer"] == text["answer"]
    assert "doubtful" in auto["notices"][0]
    chat = sac("chat", "--fidelity", "auto", stdin="Where is the key?\n/text\n/text\n", **SHORT)
    assert "doubtful" in chat.err and "answering from plain text" in chat.err and "memory, or text" in chat.err


def test_a_doubtful_answer_is_marked_on_standard_error(sac: Sac, toys: Toys, mine: Path, documents: Path) -> None:
    assert sac("index", "docs", "-q", **{**toys.environment, "SAC_ADAPTER": str(mine)}).code == 0
    card = json.loads((mine / "card.json").read_text())
    never = {"abstain": {"memory": None, "text": None}, "fallback": None}
    for limit in (None, 0.0):
        entry = {**never, "doubt": {"memory": limit, "text": None}}
        (mine / "card.json").write_text(json.dumps({**card, "calibration": {"5": entry}}))
        told = sac("ask", "Where is the key?", "--json", **SHORT).json
        assert told["doubtful"] is (limit is not None) and told["confidence"] < 0
        line = f"doubtful: most answers of such confidence ({told['confidence']:.2f}) are wrong\n"
        spoken = sac("ask", "Where is the key?", **SHORT)
        assert (line in spoken.err) is told["doubtful"] and "doubtful" not in spoken.out
        chat = sac("chat", stdin="Where is the key?\n", **SHORT)
        assert ("doubtful: most answers of such confidence" in chat.err) is told["doubtful"]
        assert "doubtful" not in sac("ask", "Where is the key?", "-q", **SHORT).err
        both = [line.split("\t") for line in sac("ask", "Where is the key?", "--both", **SHORT).out.splitlines()]
        row = next(cells for cells in both if cells[0] == "confidence")
        assert [cell.endswith(", doubtful") for cell in row[1:3]] == [told["doubtful"], False]


def test_wrong_arguments(sac: Sac, mine: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    dev = questions("dev.jsonl")
    for args, said in (
        (("--report", "--write"), "leave out --write"),
        (("--report",), "not calibrated at ratio 5"),
        (("--ratio", "many"), "--ratio is 'many'"),
        (("--precision", "2"), "precision is 2.0"),
    ):
        done = sac("calibrate", dev, *args, *flags)
        assert done.code == 2 and said in done.err and done.out == "" and done.err.count("\n") == 1
    monkeypatch.setattr("os.access", lambda *_: False)
    done = sac("calibrate", dev, "--write", *flags)
    assert done.code == 1 and "copy the adapter to a folder of your own" in done.err
