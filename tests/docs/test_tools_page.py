"""The page on tools on tiny models: its Python, block after block, is one program (test_pages.py: the default one)."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

from llama_index.core import Settings

from sac_rag import IndexConfig
from tests.docs.test_pages import TRAVEL
from tests.integrations.llama_index_chat import TEMPLATE

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/tools.md"


def program() -> str:
    """All Python blocks; line numbers are those of the page."""
    text = PAGE.read_text("utf-8")
    lines: list[str] = []
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        start = text.count("\n", 0, block.start(1))
        lines += [""] * (start - len(lines)) + block[1].splitlines()
    return "\n".join(lines) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "travel.md").write_text(TRAVEL)
    return tmp_path


@pytest.fixture
def _settings_of_its_own() -> Iterator[None]:
    before = dict(Settings.__dict__)
    yield
    Settings.__dict__.clear()
    Settings.__dict__.update(before)


def check(printed: str) -> None:
    """The answer by schema, the agent's, a pydantic object, the other agent's, and an object again."""
    first, *_, last = printed.strip().splitlines()
    assert set(json.loads(first)) == {"who"}
    assert len(re.findall(r"^who=.* euros=-?\d+$", printed, re.M)) >= 1 and "euros=" in last


@pytest.mark.usefixtures("_settings_of_its_own")
def test_it_runs_on_tiny_models(
    folder: Path, tiny_config: IndexConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sac_rag.answer.engine import Engine

    engine = Engine.shared(tiny_config.model, tiny_config.method, tiny_config.adapter)
    monkeypatch.setattr(engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
    monkeypatch.setattr(IndexConfig.__init__, "__defaults__", dataclasses.astuple(tiny_config))
    monkeypatch.setattr("sac_rag.compress.backbone.Backbone.context_length", 8192)
    monkeypatch.chdir(folder)
    exec(compile(program(), str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})
    check(capsys.readouterr().out)
