"""The page on a method of one's own is executed: its file registered, its commands run, its test run."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from sac_cli.main import run
from sac_rag.compress.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/new-method.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(PAGE.read_text("utf-8")) if kind == language]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The page's file, under the name that its line gives it."""
    code, _ = blocks("python")
    (line,) = blocks("text")
    entries = json.loads("{" + line.strip().rstrip(",") + "}")
    ((name, entry),) = entries.items()
    module = types.ModuleType(entry.partition(":")[0])
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(METHODS._entries, name, entry)
    assert METHODS.load(name).name == name
    return module


def test_its_test_passes(registered: types.ModuleType) -> None:
    _, code = blocks("python")
    exec(compile(code, str(PAGE), "exec"), dict(registered.__dict__))


def test_its_commands_run(
    registered: types.ModuleType, tiny_base: Path, tiny_embedder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [
        {
            "context": f"In {year} Ada kept the lamp of Cape Verity.",
            "qas": [{"question": "When?", "answers": [str(year)]}],
        }
        for year in range(1900, 1912)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/lamp.md").write_text("Ada keeps the lamp of Cape Verity.")
    monkeypatch.chdir(tmp_path)
    own = {"MODEL": str(tiny_base), "SAC_EMBEDDER": str(tiny_embedder), "SAC_DTYPE": "float32", "SAC_PROCESSES": "1"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    (commands,) = blocks("bash")
    lines = commands.strip().splitlines()
    assert [line.split()[1] for line in lines] == ["train", "index", "ask", "eval"]
    for line in lines:
        program, *args = shlex.split(os.path.expandvars(line))
        capsys.readouterr()
        assert program == "sac" and run(args) == 0, f"{line}\n{capsys.readouterr().err}"
    card = json.loads((tmp_path / "runs/pooled/card.json").read_text())
    assert card["method"] == "pooled" and card["training"]["stages"][0]["steps_done"] == 20
    assert "pooled" in capsys.readouterr().out


def test_other_kinds_name_files_that_are_there() -> None:
    text = PAGE.read_text("utf-8")
    named = set(re.findall(r"\| `((?:\w+/)*\w+\.py)`(?:, `(\w+\.py)`)? \|", text))
    files = {name for pair in named for name in pair if name}
    assert len(files) >= 5
    root = PAGE.parents[2]
    for name in files:
        assert (root / name).is_file() or (root / "sac_rag/compress/methods" / name).is_file(), f"{name} is not there"
