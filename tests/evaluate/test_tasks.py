"""Groups of test files, and which questions a limit draws."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sac_rag.errors import ConfigError
from sac_rag.evaluate.tasks import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    SETS,
    Task,
    check_names,
    files_of,
    grouped,
    groups,
    is_macro,
    load_task,
)
from sac_rag.train.data import Question


def test_the_groups_are_apart_and_hold_no_training_file():
    both = [*IN_DOMAIN, *OUT_OF_DOMAIN]
    assert (len(IN_DOMAIN), len(OUT_OF_DOMAIN)) == (8, 12) and len(set(both)) == 20
    assert all(f.endswith((".test.jsonl.gz", "squad.dev.jsonl.gz")) for f in both)


def test_files_of_a_group_are_found_or_named(tmp_path):
    for name in IN_DOMAIN:
        (tmp_path / name).touch()
    assert files_of("in-domain", tmp_path) == [str(tmp_path / n) for n in IN_DOMAIN]
    (tmp_path / IN_DOMAIN[2]).unlink()
    (tmp_path / IN_DOMAIN[5]).unlink()
    with pytest.raises(ConfigError) as caught:
        files_of("in-domain", tmp_path)
    assert str(tmp_path / IN_DOMAIN[2]) in str(caught.value) and IN_DOMAIN[5] in str(caught.value)
    with pytest.raises(ConfigError, match="everywhere"):
        files_of("everywhere", tmp_path)
    assert set(SETS) == {"in-domain", "out-of-domain"}


def test_rows_need_names_of_their_own():
    check_names(["a/x.jsonl", "a/y.jsonl.gz"])
    for files in (["a/x.jsonl", "b/x.jsonl.gz"], ["macro.jsonl"], ["macro b.jsonl"], []):
        with pytest.raises(ConfigError):
            check_names(files)


def test_each_group_has_an_average_of_its_own():
    assert grouped(["x", "y"]) == (["x", "y"], {"macro": slice(0, 2)})
    assert grouped({"in": ["x", "y"]}) == grouped(["x", "y"])
    paths, rows = grouped({"in": ["x", "y"], "out": ["z"]})
    assert {name: paths[part] for name, part in rows.items()} == {"macro in": ["x", "y"], "macro out": ["z"]}
    assert all(map(is_macro, ("macro", *rows))) and not any(map(is_macro, ("macros", "x", "")))


def test_a_limit_draws_the_same_questions_every_time(write_set):
    path = write_set("lamps", contexts=20, questions=3)

    def ids(limit=9, seed=0):
        return [q.qid for _, qs in load_task(path, limit=limit, seed=seed).contexts for q in qs]

    drawn, everything = ids(), ids(limit=None)
    assert len(drawn) == 9 and drawn == ids() and ids(seed=1) != drawn
    assert drawn == [i for i in everything if i in drawn]
    assert ids(limit=60) == ids(limit=99) == everything
    code = (
        "import sys; from sac_rag.evaluate.tasks import load_task; "
        "print([q.qid for _, qs in load_task(sys.argv[1], limit=9).contexts for q in qs])"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    assert other.stdout.strip() == str(drawn)


def test_groups_hold_each_context_once_within_their_bounds(monkeypatch):
    q = Question("", "?", ("a",))
    task = Task("t", tuple(("x" * n, (q,) * k) for n, k in [(50, 3), (10, 2), (30, 9), (20, 2), (90, 1), (95, 1)]))
    found = groups(task, 4)
    assert found == [[1, 3], [2], [0, 4], [5]]
    assert all(sum(len(task.contexts[i][1]) for i in g) <= 4 or len(g) == 1 for g in found)
    monkeypatch.setattr("sac_rag.evaluate.tasks.GROUP_CHARACTERS", 100)
    assert all(sum(len(task.contexts[i][0]) for i in g) <= 100 for g in groups(task, 100))
