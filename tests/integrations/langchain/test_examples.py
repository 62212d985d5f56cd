"""The example programs run, on tiny models (test_migration.py and test_agent_tutorials.py run those that port one)."""

from __future__ import annotations

import re
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
PROGRAMS = sorted(p for p in FOLDER.glob("*.py") if not p.stem.endswith(("_before", "_after")))


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
    turns = 3 if program.stem == "conversation" else 1
    monkeypatch.setattr(sys, "argv", [program.name, library, *[QUESTION] * turns])
    runpy.run_path(str(program), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip()
    if program.stem == "conversation":
        read = [int(n) for n in re.findall(r"\((\d+) tokens read\)\n", printed)]
        # A turn adds its question, the answer before (64 tokens of at most 3 bytes) and the template around them.
        assert len(read) == turns and max(read[1:]) <= len(QUESTION) + 3 * 64 + 60
    if program.stem == "parallel":
        assert printed.startswith("16 of 16 answers equal")
