"""The example programs run, on tiny models; the README shows nothing but their code."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.records import Document
from tests.integrations.conftest import TEXTS

from .helpers import QUESTION

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples/langchain"
README = ROOT / "integrations/langchain-sac/README.md"
PROGRAMS = sorted(FOLDER.glob("*.py"))


@pytest.fixture
def library(tiny_config: Any, tmp_path: Path) -> str:
    path = tmp_path / "my.lib"
    with SacRag.open(path, config=tiny_config, write=True, create=True) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
    return str(path)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.stem)
def test_an_example_runs(
    program: Path, library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program.name, library, QUESTION])
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_readme_shows_the_examples() -> None:
    code = [_unindented(p.read_text("utf-8")) for p in PROGRAMS]
    blocks = README.read_text("utf-8").split("```")[1::2]
    shown = [b.removeprefix("python\n") for b in blocks if b.startswith("python\n")]
    assert len(shown) >= 6
    for block in shown:
        assert any(_unindented(block) in text for text in code), block
    (diff,) = (b.removeprefix("diff\n") for b in blocks if b.startswith("diff\n"))
    (before,) = (p.read_text("utf-8") for p in PROGRAMS if p.stem == "migration")
    for line in diff.strip().splitlines():
        if not line.startswith("+"):
            assert line[1:].strip().replace("\\", "\\\\") in before, line


def _unindented(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
