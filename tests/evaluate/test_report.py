"""The results page is the recorded runs, and says so when one is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.evaluate.report import record, render

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_in_docs_is_what_the_recorded_runs_render_to():
    assert (DOCS / "results.md").read_text("utf-8") == render(DOCS / "results")


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


def test_a_damaged_run_is_named(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"title": "no tables"}))
    with pytest.raises(ConfigError, match=r"x\.json"):
        render(tmp_path)
