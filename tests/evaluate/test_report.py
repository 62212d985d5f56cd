"""The results page and its figures are the recorded runs, and say so when one is damaged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.evaluate.report import drawn, main, record, recordable, render, thinned

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_in_docs_is_what_the_recorded_runs_render_to():
    assert (DOCS / "results.md").read_text("utf-8") == render(DOCS / "results")


def test_the_figures_in_docs_are_what_the_recorded_runs_draw():
    found = {p.name: p.read_text("utf-8") for p in (DOCS / "results").glob("*.svg")}
    assert found == drawn(DOCS / "results")
    page = (DOCS / "results.md").read_text("utf-8")
    assert found and all(f"](results/{name})" in page for name in found)


def test_a_recorded_run_becomes_a_table(tmp_path):
    rows = {
        "runs": [{"set": "a|b", "f1": 0.3456, "n": 500, "ratio": None}, {"set": "c", "f1": 1.0, "n": 1, "ratio": 5.0}]
    }
    record(tmp_path, "eval", "First", "sac eval a", "Seed 0.", {**rows, "version": "1"})
    page = render(tmp_path)
    assert "## First\n\n```bash\nsac eval a\n```\n\nSeed 0.\n" in page
    assert (
        "| set | f1 | n | ratio |" in page and "| a\\|b | 34.6 | 500 |  |" in page and "| c | 100.0 | 1 | 5 |" in page
    )
    assert "![" not in page and "Made with" not in page


def test_many_runs_are_seen_at_once_and_folded_away(tmp_path):
    rows = [
        {"set": s, "reader": r, "f1": 0.5, "em": 0.25, "f1_low": 0.4, "f1_high": 0.6}
        for s in ("a", "b")
        for r in ("text", "memory")
    ]
    record(tmp_path, "x", "T", "c", "", {"runs": rows})
    seen, folded = render(tmp_path).split("\n<details><summary>Every run, with intervals</summary>\n\n")
    assert "| F1 / EM | text | memory |" in seen and "| b | 50.0 / 25.0 | 50.0 / 25.0 |" in seen
    assert folded.count("| 50.0 (40.0 to 60.0) |") == 4 and folded.endswith("|\n\n</details>\n")


def test_records_stand_in_the_order_of_their_numbers(tmp_path):
    for name in ("10-ten", "9-nine", "other", "2-two"):
        record(tmp_path, name, name, "sac eval a", "", {"runs": [{"set": "a", "f1": 0.5}]})
    page = render(tmp_path)
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == ["2-two", "9-nine", "10-ten", "other"]


def test_intervals_stand_in_the_cell_and_empty_columns_are_left_out(tmp_path):
    row = {"set": "a", "f1": 0.5, "em": 0.25, "f1_low": 0.4, "f1_high": 0.6, "em_low": 0.2, "em_high": 0.3}
    record(tmp_path, "x", "T", "c", "", {"runs": [{**row, "retention": 0.9, "ratio": None, "peak_mib": 12.0}]})
    page = render(tmp_path)
    assert "| set | f1 | em | retention | peak mib |" in page
    assert "| a | 50.0 (40.0 to 60.0) | 25.0 (20.0 to 30.0) | 90.0 | 12 |" in page


def test_differences_stand_with_their_interval_beside_their_adapter(tmp_path):
    first = {"set": "macro in-domain", "adapter": "whole", "f1": 0.5, "difference": None}
    ends = {"difference_low": None, "difference_high": None}
    other = {**first, "adapter": "causal", "f1": 0.47, "difference": -0.03}
    rows = [{**first, **ends}, {**other, "difference_low": -0.05, "difference_high": 0.01}]
    record(tmp_path, "x", "T", "c", "", {"runs": rows})
    page = render(tmp_path)
    assert "| set | adapter | f1 | difference |" in page and "| macro in-domain | whole | 50.0 |  |" in page
    assert "| macro in-domain | causal | 47.0 | -3.0 (-5.0 to 1.0) |" in page


def test_figures_are_written_beside_the_record_and_linked(tmp_path, capsys):
    folder = tmp_path / "results"
    rows = [{"set": "a", "reader": "memory", "method": "sac", "ratio": r, "f1": 1 / r} for r in (5.0, 15.0)]
    origin = {
        "versions": {"sac_rag": "1.2", "torch": "9"},
        "fingerprints": {"model_sha256": "a" * 64, "adapter_sha256": {"sac": "b" * 64}},
    }
    record(folder, "3-x", "T", "c", "", {"runs": rows, **origin})
    assert main([str(folder)]) == 0
    page = capsys.readouterr().out
    assert "![F1 on a](results/3-x.runs.f1-by-ratio.svg)\n" in page and page == render(folder)
    assert {p.name: p.read_text() for p in folder.glob("*.svg")} == drawn(folder)
    assert f"Made with sac_rag 1.2, torch 9, base `{'a' * 12}`, sac adapter `{'b' * 12}`.\n" in page


def test_a_training_run_is_recorded_from_its_metrics(tmp_path, monkeypatch, capsys):
    steps = [
        {"step": s, "examples": 20 * s, "loss": 5 / s, "recall": 2.5, "learning_rate": 1e-3, "extra": {}}
        for s in range(1, 901)
    ]
    lines = "".join(json.dumps(s) + "\n" for s in [*steps[:500], *steps[400:]])
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main([str(tmp_path), "record", "4-train", "Training", "sac train a", "Note."]) == 0
    rows = json.loads((tmp_path / "4-train.json").read_text())["tables"]["training"]
    assert len(rows) == 200 and rows[0]["step"] == 1 and rows[-1]["step"] == 900
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows})
    assert set(rows[0]) == {"step", "examples", "loss", "recall"}
    assert main([str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "4-train.training.loss.svg" in page and page.count("\n| ") == 2 + 8
    assert "| 900 | 18000 | 0.005556 | 2.5 |" in page, "losses are no shares"
    assert (tmp_path / "4-train.training.loss.svg").exists()


def test_only_results_can_be_recorded():
    assert recordable('{"runs": [{"f1": 1.0}]}') == {"runs": [{"f1": 1.0}]}
    assert recordable('{"step": 1, "examples": 2, "loss": 3.0}\n')["training"] == [
        {"step": 1, "examples": 2, "loss": 3.0}
    ]
    for text in ("", "no json", "[1, 2]", '{"a": 1}\n{"b": 2}\n'):
        with pytest.raises(ConfigError):
            recordable(text)


def test_thinned_keeps_both_ends():
    assert thinned(range(5), 9) == [0, 1, 2, 3, 4]
    assert thinned(range(100), 4) == [0, 33, 66, 99]


def test_a_damaged_run_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"title": "no tables"}))
    with pytest.raises(ConfigError, match=r"x\.json"):
        render(tmp_path)


def test_the_page_begins_with_what_its_records_say(tmp_path):
    ways = {"text": (1.0, 1.0), "5x": (0.25, 4.0), "15x": (0.125, 8.0), "full-kv": (0.5, 2.0)}
    first = [
        {"way": w, "passages": k, "passage_tokens": 256, "first_token_s": s, "sooner": times}
        for k in (1, 5, 10)
        for w, (s, times) in ways.items()
    ]
    stored = [
        {"ratio": r, "codec": c, "bytes_per_source_token": b / r}
        for r in (5.0, 15.0)
        for c, b in (("transform", 2250.0), ("bf16", 22500.0))
    ]
    record(tmp_path, "2-bench", "Speed", "sac bench", "", {"first_token": first, "storage": stored})
    page = render(tmp_path)
    short = page.split("## In short")[1].split("## Speed")[0]
    assert "five passages at 5x: 0.25 s instead of 1.00 s from text, 4.0 times sooner" in short
    assert "0.25 s instead of 0.50 s, 2.0 times sooner" in short
    assert "450 bytes at 5x and 150 at 15x; as bf16 4500 and 1500." in short
    assert "F1" not in short.split("*5x*")[0], "nothing is said of records that are not there"
    assert "| 10 of at most 256 tokens | 1.00 s | 0.25 s (4.0x) | 0.12 s (8.0x) | 0.50 s (2.0x) |" in page


def test_sentences_beside_memory_have_a_line_of_their_own(tmp_path):
    rows = [
        {"set": f"macro {name}", "reader": reader, "ratio": ratio, "f1": f1, "em": f1, "retention": share}
        for name in ("in-domain", "out-of-domain")
        for reader, ratio, f1, share in (("adapted+2", 5.0, 0.486, 0.94), ("full-ft", None, 0.516, 1.0))
    ]
    record(tmp_path, "6-sentences", "Sentences", "sac eval", "", {"runs": rows})
    short = render(tmp_path).split("## In short")[1]
    for name in ("in-domain", "out-of-domain"):
        assert f"two sentences beside memory, {name}, and its share of Full-FT's: 48.6 at 5x (94 %)." in short
