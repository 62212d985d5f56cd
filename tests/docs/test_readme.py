"""The README is executed: its Python in order as one program, its shell blocks through `sac`, on the default model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
LANGUAGES = {"python", "bash", "text", "toml"}
NOT_RUN = re.compile(r"<!-- not run:\s*(.*?)\s*-->")
ELSEWHERE = re.compile(r"^\s*(make|pip|git|cd|python3? -m (venv|pip))\b")
"""Lines about getting the software, which is here already."""
TRAVEL = """# Travel

Trips are booked by the office. Travel above 500 euros is approved by the finance director, Dana Whitfield.
Receipts are handed in within 30 days.
"""
CANAL = "The Erie Canal opened in 1825. It spans 363 miles between Albany and Buffalo."


@dataclass(frozen=True)
class Block:
    """A fenced block of the README; `line` is the number of its first line of content."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks() -> list[Block]:
    found: list[Block] = []
    lines = README.read_text("utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            continue
        before = next((text for text in reversed(lines[:start]) if text.strip()), "")
        mark = NOT_RUN.fullmatch(before.strip())
        found.append(Block(language, "\n".join(lines[start + 1 : number]), start + 2, mark[1] if mark else None))
        start = None
    assert start is None, f"the block at line {(start or 0) + 1} is not closed"
    return found


def to_run(language: str) -> list[Block]:
    return [b for b in blocks() if b.language == language and b.not_run is None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "travel.md").write_text(TRAVEL)
    (tmp_path / "docs" / "canal.txt").write_text(CANAL)
    return tmp_path


def environment() -> dict[str, str]:
    """The user's own, less flags of `sac`; where models lie stays."""
    kept = ("SAC_CACHE", "SAC_OFFLINE", "SAC_WHEELHOUSE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SAC_") or k in kept}
    return {**clean, "PATH": os.pathsep.join((sysconfig.get_path("scripts"), clean.get("PATH", "")))}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_block_says_what_it_is() -> None:
    assert not {b.language for b in blocks()} - LANGUAGES, f"fence blocks as one of {sorted(LANGUAGES)}"
    assert len(to_run("python")) >= 2
    assert len(to_run("bash")) >= 2


def test_what_is_not_run_has_a_reason() -> None:
    text = README.read_text("utf-8")
    assert len(re.findall(r"<!-- not run", text)) == sum(b.not_run is not None for b in blocks())
    for block in blocks():
        assert block.not_run is None or len(block.not_run) >= 10, f"line {block.line}: why is this block not run?"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README.read_text("utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{target} is not there"


def test_the_file_tree_is_true() -> None:
    (tree,) = (b for b in blocks() if b.language == "text" and b.text.startswith("sac_rag/"))
    parents: list[str] = []
    for line in tree.text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, comment = line.strip().partition(" ")
        path = ROOT.joinpath(*parents[:depth], name)
        assert comment.strip(), f"{name} has no comment"
        assert path.is_dir() if name.endswith("/") else path.is_file(), f"{path.relative_to(ROOT)} is not there"
        parents[depth:] = [name]


@pytest.mark.model
@pytest.mark.slow
def test_the_python_runs(folder: Path) -> None:
    program: list[str] = []
    for block in to_run("python"):  # line numbers of a traceback are those of the README
        program += [""] * (block.line - 1 - len(program)) + block.text.splitlines()
    (folder / "readme.py").write_text("\n".join(program) + "\n")
    assert run([sys.executable, "readme.py"], folder).strip()


@pytest.mark.model
@pytest.mark.slow
def test_the_shell_runs(folder: Path) -> None:
    sac = Path(sysconfig.get_path("scripts")) / "sac"
    assert sac.exists(), f"{sac} is not there: install the package (`make install`)"
    asked = 0
    for block in to_run("bash"):
        lines = [line for line in block.text.splitlines() if not ELSEWHERE.match(line)]
        if any(re.match(r"\s*sac\b", line) for line in lines):
            out = run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], folder)
            assert out.strip(), f"the block at line {block.line} prints nothing"
            asked += sum("sac ask" in line for line in lines)
    assert asked
