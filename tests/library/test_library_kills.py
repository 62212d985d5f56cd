"""Law 6 after SIGKILL: nothing acknowledged is lost, nothing is torn, work resumes. See kill_worker.py.

`SAC_TEST_DEPTH=full` kills before every mutating system call of the small run, and at 500 random moments.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from library_support import FULL


def run(*arguments: object) -> dict[str, Any]:
    worker = Path(__file__).with_name("kill_worker.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        [sys.executable, str(worker), *map(str, arguments)], capture_output=True, text=True, env=env, check=False
    )
    assert out.returncode == 0, out.stderr[-4000:]
    result: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return result


def test_kill_at_random_moments(tmp_path: Path) -> None:
    result = run("moments", tmp_path / "library", 500 if FULL else 50, 11)
    assert result["kills"] == (500 if FULL else 50)
    assert result["committed"] > 0


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_kill_before_mutating_system_calls(tmp_path: Path) -> None:
    result = run("syscalls", tmp_path, 1 if FULL else 6)
    if "skip" in result:
        pytest.skip(result["skip"])
    assert result["kills"] >= (100 if FULL else 25)
    assert {"rename", "fsync", "unlink", "write", "pwrite64"} <= set(result["by_call"]) | {"unlinkat"}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_kill_of_a_repair(tmp_path: Path) -> None:
    result = run("repairs", tmp_path, 1 if FULL else 4)
    if "skip" in result:
        pytest.skip(result["skip"])
    assert result["kills"] >= (60 if FULL else 12)
    assert {"rename", "pwrite64"} <= set(result["by_call"])
