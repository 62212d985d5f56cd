"""The wheel: built from the tree, sound by twine, and installed by uv as a command of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sac_rag import __version__

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"typer", "rich", "markdown-it-py"}
"""What `sac --version` and `sac --help` import."""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-d", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_twine_finds_no_fault(built: Path) -> None:
    pytest.importorskip("twine", reason="twine is not there: pip install 'sac-rag[dev]'")
    files = [str(path) for path in built.iterdir()]
    assert sorted(path.rpartition(".")[2] for path in files) == ["gz", "whl"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *files)
    assert done.returncode == 0 and "FAILED" not in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_holds_what_a_user_needs(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sac_cli/main.py", "langchain_sac/__init__.py", "llama_index/llms/sac/base.py", "sac_rag/py.typed"} <= names
    assert any(name.startswith("sac_rag/serve/static/") for name in names)
    assert not any(name.startswith(("tests/", "docs/", "scripts/")) or "full-ft" in name for name in names)


@pytest.mark.slow
def test_uv_installs_it_as_a_command(built: Path, tmp_path: Path) -> None:
    """Of what it depends on, only what these two commands import: all of it would be gigabytes."""
    uv = pytest.importorskip("uv", reason="uv is not there: pip install 'sac-rag[dev]'").find_uv_bin()
    (wheel,) = built.glob("*.whl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}  # type: ignore[index]
    assert names > NEEDED
    never = tmp_path / "never.txt"
    never.write_text("".join(f"{name}; python_version < '3'\n" for name in sorted(names - NEEDED)))
    places = {
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_CONFIG": "1",
    }
    done = run(uv, "tool", "install", "--python", sys.executable, "--overrides", str(never), str(wheel), **places)
    if done.returncode and re.search(r"[Ff]ailed to fetch|error sending request|connect|dns error", done.stderr):
        pytest.skip(f"uv reaches no package index by its own settings: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    sac = str(tmp_path / "bin/sac")
    clean = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    assert run(sac, "--version", **clean).stdout == f"sac {__version__}\n"
    assert "sac index handbook/" in run(sac, "--help", **clean).stdout
