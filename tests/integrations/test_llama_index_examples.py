"""The examples run, the README shows nothing but pieces of them, and porting the tutorial takes five lines."""

from __future__ import annotations

import difflib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings

from sac_rag import SacRag
from sac_rag.config import DEFAULT_EMBEDDER, DEFAULT_MODEL
from sac_rag.models.cache import models_root

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples/llama_index").glob("*.py"))
README = ROOT / "integrations/llama-index-sac/README.md"


@pytest.fixture(autouse=True)
def _settings_of_its_own() -> Iterator[None]:
    before = dict(Settings.__dict__)
    yield
    Settings.__dict__.clear()
    Settings.__dict__.update(before)


def lines(name: str) -> list[str]:
    _, _, code = (ROOT / "examples/llama_index" / name).read_text("utf-8").split('"""', 2)
    return [line for line in code.splitlines() if line]


def test_the_readme_shows_the_examples() -> None:
    shown = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.S)
    code = [p.read_text("utf-8") for p in EXAMPLES]
    assert len(shown) >= 4
    for block in shown:
        assert any(block in text for text in code), block


def test_the_readmes_diff_is_that_of_the_examples() -> None:
    before, after = lines("migration_before.py"), lines("migration_after.py")
    found = [d for d in difflib.ndiff(before, after) if d[0] in "+-"]
    assert sum(d[0] == "+" for d in found) == 5
    (shown,) = re.findall(r"```diff\n(.*?)```", README.read_text("utf-8"), re.S)
    changed = [line for line in shown.splitlines() if line[:1] in ("+", "-")]
    assert sorted(line[1:].strip() for line in changed) == sorted(d[2:].strip() for d in found)


def cached() -> bool:
    names = [p.name for p in models_root().glob("*")] if models_root().is_dir() else []
    return all(any(n.startswith(model) for n in names) for model in (DEFAULT_MODEL, DEFAULT_EMBEDDER))


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
    if not cached():
        pytest.skip(f"{DEFAULT_MODEL} and {DEFAULT_EMBEDDER} are not in the cache; `sac models pull` gets them")
    said = run(path, tmp_path, monkeypatch, capsys)
    assert said.strip()
    if path.stem == "query_engine":  # as good or bad as the model is: it says what the library itself says
        with SacRag.open(tmp_path / "pluto.lib") as rag:
            own = rag.ask("Who discovered Pluto in February 1930?", k=1, max_new_tokens=48)
        assert said.strip().startswith(f"{own.text}\n")
        assert own.usage.anchors > 0
