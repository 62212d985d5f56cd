"""The examples run (test_migration.py and test_agent_tutorials.py run those that port a tutorial)."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from sac_rag import SacRag

from .real import default_models

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(p for p in (ROOT / "examples/llama_index").glob("*.py") if not p.stem.endswith(("_before", "_after")))


@pytest.fixture(autouse=True)
def _settings_of_its_own() -> Iterator[None]:
    before = dict(Settings.__dict__)
    yield
    Settings.__dict__.clear()
    Settings.__dict__.update(before)


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(folder)
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(
    path: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sac_rag.pipeline.IndexConfig", lambda: tiny_config)
    # A token of the tiny model is a byte: a chunk of the tutorial would not fit its context.
    monkeypatch.setattr("sac_rag.compress.backbone.Backbone.context_length", 8192)
    assert run(path, tmp_path, monkeypatch, capsys).strip()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_answers(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default_models()
    said = run(path, tmp_path, monkeypatch, capsys)
    assert said.strip()
    if path.stem == "query_engine":  # as good or bad as the model is: it says what the library itself says
        with SacRag.open(tmp_path / "pluto.lib") as rag:
            own = rag.ask("Who discovered Pluto in February 1930?", k=1, max_new_tokens=48)
        assert said.strip().startswith(f"{own.text}\n")
        assert own.usage.anchors > 0
