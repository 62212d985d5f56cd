"""Completion: the script that `sac --show-completion` prints completes commands, flags and groups in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def sac(*args: str, **own: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **own}
    return subprocess.run(
        [sys.executable, "-m", "sac_cli", *args], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("sac in", {"index", "info"}),
        ("sac models ", {"list", "pull", "path", "verify"}),
        ("sac ask --fid", {"--fidelity"}),
        ("sac serve --read", {"--read-only"}),
    ],
)
def test_words_are_completed(words: str, wanted: set[str]) -> None:
    number = len(words.split()) - (not words.endswith(" "))
    done = sac(_SAC_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(number))
    assert wanted <= set(done.stdout.split()), done.stderr
    assert all(word.startswith(words.split(" ")[-1]) for word in done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(tmp_path: Path) -> None:
    shown = sac("--show-completion", "bash")
    assert shown.returncode == 0 and "complete" in shown.stdout, shown.stderr
    (tmp_path / "sac").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sac_cli "$@"\n')
    (tmp_path / "sac").chmod(0o755)
    program = f"""{shown.stdout}
COMP_WORDS=(sac in); COMP_CWORD=1
name=$(complete -p sac | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$name sac in sac
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", program],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert set(done.stdout.split()) == {"index", "info"}, done.stderr


def test_a_broken_file_of_settings_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "sac.toml").write_text("= broken")
    done = subprocess.run(
        [sys.executable, "-m", "sac_cli"],
        cwd=tmp_path,
        env={**os.environ, "_SAC_COMPLETE": "complete_bash", "COMP_WORDS": "sac in", "COMP_CWORD": "1"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert {"index", "info"} <= set(done.stdout.split()), done.stdout + done.stderr
