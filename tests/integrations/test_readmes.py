"""The Python of both READMEs, block after block, is one program that runs; it shows every public name."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Settings

import langchain_sac
from sac_rag import IndexConfig

from .real import default_models

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "integrations" / name / "README.md" for name in ("langchain-sac", "llama-index-sac")]
BOTH = pytest.mark.parametrize("readme", READMES, ids=lambda p: p.parent.name)
TRAVEL = """# Travel

Trips are booked by the office. Travel above 500 euros is approved by the finance director, Dana Whitfield.
Receipts are handed in within 30 days.
"""


def program(readme: Path) -> str:
    """All Python blocks; line numbers are those of the README."""
    text = readme.read_text("utf-8")
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
    Settings.tokenizer = None  # type: ignore[assignment]


@pytest.mark.usefixtures("_settings_of_its_own")
@BOTH
def test_it_runs_on_tiny_models(
    readme: Path,
    folder: Path,
    tiny_config: IndexConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(IndexConfig.__init__, "__defaults__", dataclasses.astuple(tiny_config))
    monkeypatch.setattr("sac_rag.compress.backbone.Backbone.context_length", 8192)
    monkeypatch.chdir(folder)
    exec(compile(program(readme), str(readme), "exec", dont_inherit=True), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) >= 5


@pytest.mark.model
@pytest.mark.slow
@BOTH
def test_it_runs_as_a_program(readme: Path, folder: Path) -> None:
    default_models()
    (folder / "readme.py").write_text(program(readme))
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=folder, env=os.environ, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # An answer that stands in the document alone: a very small model gets one of each page's questions right.
    assert ("within 30 days" if readme.parent.name == "langchain-sac" else "Dana") in done.stdout


@BOTH
def test_it_shows_every_public_name(readme: Path) -> None:
    if readme.parent.name == "langchain-sac":
        names = set(langchain_sac.__all__)
    else:
        modules = [p.parent.relative_to(readme.parent) for p in readme.parent.glob("llama_index/*/sac/__init__.py")]
        assert len(modules) >= 8
        names = {n for m in modules for n in importlib.import_module(".".join(m.parts)).__all__}
    assert [n for n in sorted(names) if not re.search(rf"\b{n}\b", program(readme))] == []


@BOTH
def test_it_lists_every_example(readme: Path) -> None:
    folder = ROOT / "examples" / {"langchain-sac": "langchain", "llama-index-sac": "llama_index"}[readme.parent.name]
    rows = [line for line in readme.read_text("utf-8").splitlines() if line.startswith("| [")]
    shown = re.findall(r"/(\w+\.py)\)", "\n".join(rows))
    assert sorted(shown) == sorted(p.name for p in folder.glob("*.py"))


@BOTH
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", readme.read_text("utf-8")):
        assert target.startswith("https://") or (readme.parent / target).exists(), f"{target} is not there"
