"""Rules of .gitignore files: as git has them, and in bounded time whatever they say."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from sac_rag.text.ignore import MOST_RULES, Rules
from sac_rag.text.walk import walk

FOLDERS = ["/".join(p) for n in (0, 1, 2) for p in itertools.product(["a", "b", "ab", "ba.c"], repeat=n)]
PATHS = [f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in ("aa", "c", "b.a", "]a", "*", "abab")]


def left_out(rules: Rules, path: str) -> bool:
    """Whether a walk leaves a file out: by a rule for it or for a folder around it."""
    parts = path.split("/")
    return any(rules.decide(parts[:n], is_folder=n < len(parts)) for n in range(1, len(parts) + 1))


def random_rule(rng: random.Random) -> str:
    # Not `a**`: git takes its stars for those of `**/`, against its own manual.
    names = [
        "".join(rng.choice(["a", "b", "c", ".", "*", "?", "[ab]", "[!a]", "\\a"]) for _ in range(n))
        for n in (rng.randrange(1, 4) for _ in range(rng.randrange(1, 4)))
    ]
    for at, name in enumerate(names):
        if rng.random() < 0.2:
            names[at] = "**"
        elif name.strip(".") == "":
            names[at] = "a"
    return "!" * (rng.random() < 0.2) + "/" * (rng.random() < 0.3) + "/".join(names) + "/" * (rng.random() < 0.2)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_rules_are_those_of_git(tmp_path: Path) -> None:
    rng = random.Random(5)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for path in PATHS:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    sets = [[random_rule(rng) for _ in range(rng.randrange(1, 4))] for _ in range(150)]
    sets += [["a/**/b"], ["**/a/**"], ["a/**"], ["/**/b"], ["**"], ["/*", "!/a"], ["[[:alpha:]]"], ["[^a]"], ["[]a]"]]
    sets += [["a\\"], ["[a"], ["[z-a]"], ["#a", "\\#a"], ["a ", "b\\ "], ["!a"], ["/"], ["//"], ["a/", "!a"], ["\\*"]]
    for lines in sets:
        (tmp_path / ".gitignore").write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--stdin", "--no-index", "-z"],
            input="\0".join(PATHS),
            capture_output=True,
            text=True,
            check=False,
        )
        expected = set(filter(None, done.stdout.split("\0")))
        rules = Rules(lines)
        assert {path for path in PATHS if left_out(rules, path)} == expected, lines


def test_common_rules_are_those_of_pathspec() -> None:
    lines = ["*.log", "!keep.log", "build/", "/dist", "**/node_modules/", "docs/**/*.tmp", "src/*.py[co]", "*.egg-info"]
    lines += ["!/src/a.pyc", ""]
    paths = ["a.log", "x/keep.log", "build/x", "x/build/y", "build", "dist", "x/dist", "a/node_modules/b", "docs/a.tmp"]
    paths += ["docs/a/b/c.tmp", "src/a.pyc", "src/b.pyo", "src/x/b.pyc", "sac.egg-info/PKG", "README.md", "docs/a.md"]
    rules, spec = Rules(lines), GitIgnoreSpec.from_lines(lines)
    assert {p for p in paths if left_out(rules, p)} == {p for p in paths if spec.match_file(p)}


HOSTILE = [
    "*" * 6 + "a",
    "*a" * 100 + "*b",
    "**a" * 100 + "b",
    "*" * 50_000 + "b",
    "?*" * 120 + "b",
    "[a]*" * 100 + "b",
    "**/" * 5_000 + "b",
    "**/a/" * 2_000 + "b",
    "/**/*a*a*a/**/*a*a*a/**/*a*a*a/**/b",
    "*a*/" * 500 + "b",
    "[" * 50_000,
    "\\" * 50_001,
    "[[:alpha:" * 5_000,
    "(a+)+$",
]


@pytest.mark.parametrize("rule", HOSTILE, ids=range(len(HOSTILE)))
def test_one_rule_takes_bounded_time(rule: str) -> None:
    paths = [["a" * 255], ["a"] * 200, ["a" * 60] * 60, [*(["a"] * 100), "b" * 255]]
    started = time.process_time()
    rules = Rules([rule] * 20)
    for _ in range(5):
        for path in paths:
            rules.decide(path, is_folder=False)
    assert time.process_time() - started < 5


def test_a_folder_of_hostile_rules_is_walked(tmp_path: Path) -> None:
    folder = tmp_path
    for depth in range(20):
        (folder / ".gitignore").write_text("\n".join(f"*a*a*a*{i}" for i in range(20_000)) + "\n" + "*.log\n")
        (folder / ("a" * 100 + ".txt")).write_text("x")
        folder = folder / f"d{depth}"
        folder.mkdir()
    started = time.process_time()
    assert len(list(walk([tmp_path], on_skip=lambda path, reason: None))) == 20
    assert time.process_time() - started < 20


def test_how_many_rules_count() -> None:
    assert len(Rules(["a"] * (MOST_RULES + 5))) == MOST_RULES
    assert len(Rules(["a", "b", "c"], 2)) == 2 and len(Rules(["a"], 0)) == 0
    assert len(Rules(["# a", "", "[", "a"])) == 1


@pytest.mark.parametrize("kind", ["zero", "fifo", "folder", "sparse", "binary", "loop"])
def test_files_that_are_no_rules(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    path = tmp_path / ".gitignore"
    if kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        path.write_text("*.log\n")
        os.truncate(path, 1 << 40)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(bytes(range(256)) * 10)
    assert [p.name for p in walk([tmp_path], on_skip=lambda path, reason: None)] == ["a.txt"]


def test_a_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    for name in ("a.log", "b.tmp", "c.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_bytes(b"\xef\xbb\xbf*.log\r\n*.tmp\r\n")
    assert [p.name for p in walk([tmp_path], on_skip=lambda path, reason: None)] == ["c.txt"]
