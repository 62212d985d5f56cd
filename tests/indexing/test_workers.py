"""Compressing in child processes: the files of one process, whatever happens to any of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sac_rag import SacRag
from sac_rag.errors import ConfigError, LibraryMismatch, SacError
from sac_rag.indexing import Workers, makers, plan
from sac_rag.library.library import Library
from sac_rag.maker import setup_of
from sac_rag.processes import Child

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath"]


def sentences(seed: int, count: int) -> str:
    return " ".join(
        f"The {WORDS[(seed + i) % 8]} of house {seed} met the {WORDS[(seed * 3 + i) % 8]} in year {1800 + seed + i}."
        for i in range(count)
    )


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Path:
    """Ten short files, one long one, one blank: ten groups."""
    (tmp_path / "docs").mkdir()
    for i in range(10):
        (tmp_path / f"docs/{i}.md").write_text(f"# Title {i}\n\n{sentences(i, 12)}\n")
    (tmp_path / "docs/5.long.txt").write_text(sentences(50, 120))
    (tmp_path / "docs/blank.txt").write_text(" ")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "GROUP_BYTES", 1500)
    return Path("docs")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def everything(path: Path) -> dict[str, object]:
    """All rows of the catalog but the library's own name, and a hash of each segment file."""
    with sqlite3.connect(path / "catalog.sqlite") as catalog:
        rows: dict[str, object] = {
            table: catalog.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in ("documents", "passages", "memories", "segments", "vectors")
        }
    return rows | {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in path.glob("seg-*")}


def test_two_workers_store_the_files_of_one_process(docs, tiny_config, tmp_path, one_thread):
    reports = []
    for name, workers in (("here", None), ("one", 1), ("two", 2)):
        with SacRag.index(docs, tmp_path / name, tiny_config, workers=workers) as rag:
            assert rag.library.verify() == []
            reports.append(dataclasses.replace(rag.report, seconds=0.0))
    assert reports[0] == reports[1] == reports[2] and reports[0].added == 11
    whole = everything(tmp_path / "here")
    assert len(whole["segments"]) > 8
    assert everything(tmp_path / "one") == whole
    assert everything(tmp_path / "two") == whole
    assert not list((tmp_path / "two").glob("made-*"))


def test_with_workers_only_what_changed_is_compressed(docs, tiny_config, tmp_path):
    with SacRag.index(docs, tmp_path / "a", tiny_config, workers=2) as rag:
        (docs / "3.md").write_text((docs / "3.md").read_text() + "\n\nOne more thing was found in 1999.\n")
        (docs / "4.md").write_text("")
        heard = []
        report = rag.add(docs, workers=2, listen=lambda r: heard.append((r.done + r.ahead, r.passages)))
        assert (report.changed, report.unchanged, report.removed) == (1, 9, 1)
        assert 0 < report.passages < len(rag.library.passage_ids("docs/3.md"))
        assert heard == sorted(heard) and heard[-1][0] == 12
        assert rag.library.verify() == []
        with pytest.raises(ConfigError, match="workers is 0"):
            rag.add(docs, workers=0)


INDEX = """
import sys
from sac_rag import SacRag, IndexConfig
from sac_rag.indexing import plan
plan.GROUP_BYTES = 1500
model, adapter, embedder, library = sys.argv[1:]
config = IndexConfig(model=model, adapter=adapter, embedder=embedder, passage_tokens=128)
SacRag.index("docs", library, config, workers=2, listen=lambda r: print(r.step, flush=True)).close()
print("end", flush=True)
"""


def start(config, library: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", INDEX, config.model, config.adapter, config.embedder, library],
        stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_killed_with_workers_and_resumed_gives_the_same_files(docs, tiny_config, tmp_path, one_thread):
    SacRag.index(docs, tmp_path / "whole", tiny_config).close()
    run = start(tiny_config, "killed", tmp_path)
    stored, workers = 0, []
    assert run.stdout
    for line in run.stdout:
        stored += line == "storing\n"
        if stored == 4:
            workers = children(run.pid)
            run.send_signal(signal.SIGKILL)
            break
    run.wait(timeout=60)
    run.stdout.close()
    assert len(workers) == 2
    for pid in workers:  # they end with their standard input
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.05)
    with Library.open(tmp_path / "killed") as library:
        assert library.verify() == [] and 3 <= library.head.generation < 10
    with SacRag.index(docs, tmp_path / "killed", workers=2) as rag:
        assert rag.report.unchanged >= 2 and rag.library.verify() == []
    whole, killed = everything(tmp_path / "whole"), everything(tmp_path / "killed")
    assert stored_passages(killed) == stored_passages(whole)
    assert not list((tmp_path / "killed").glob("made-*"))


def stored_passages(rows) -> dict[str, tuple[object, ...]]:
    """Passage id -> text, place, layout, checksum of its memory, and vector; keys and segments count commits."""
    ids = {row[0]: (row[1], row[3:10]) for row in rows["passages"]}
    memories = {row[0]: row[3:8] for row in rows["memories"]}
    vectors = {row[0]: row[1] for row in rows["vectors"]}
    return {i: (shown, memories[key], vectors[key]) for key, (i, shown) in ids.items()}


def test_a_worker_that_dies_is_told_of_and_what_is_committed_stays(docs, tiny_config, tmp_path, monkeypatch):
    started = []

    class Watched(Child):
        def __init__(self, *args):
            super().__init__(*args)
            started.append(self)

    monkeypatch.setattr(makers, "Child", Watched)

    def kill(report):
        if report.done >= 3:
            started[0]._child.kill()

    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        with pytest.raises(SacError, match=r"died \(code -9\).*fewer than 2 workers"):
            rag.add(docs, workers=2, listen=kill)
        assert all(child._child.poll() is not None for child in started)
        assert len(rag.library.documents()) >= 3 and rag.library.verify() == []
        assert not list(rag.library.path.glob("made-*"))
        left = 11 - len(rag.library.documents())
        report = rag.add(docs, workers=1)
        assert left <= report.added <= left + 1  # one may have been under way in parts
        assert len(rag.library.documents()) == 11


def test_a_worker_refuses_a_model_that_is_not_the_librarys(docs, tiny_config, tmp_path):
    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        setup = setup_of(rag.library, tiny_config, device="cpu", dtype="float32")
        other = {**setup, "fingerprint": {**setup["fingerprint"], "adapter_sha256": "0" * 64}}
        with pytest.raises(LibraryMismatch, match="adapter_sha256"):
            rag._indexer().add(docs, workers=Workers(1, "sac_rag.maker:serve", other))
        assert rag.library.documents() == []


def test_ctrl_c_leaves_no_worker_and_no_file(docs, tiny_config, tmp_path, monkeypatch):
    started = []
    whole = makers.Child

    def start_child(*args):
        started.append(whole(*args))
        return started[-1]

    monkeypatch.setattr(makers, "Child", start_child)

    def press(report):
        if report.done >= 4:
            signal.raise_signal(signal.SIGINT)

    with SacRag.open(tmp_path / "a", config=tiny_config, create=True) as rag:
        with pytest.raises(KeyboardInterrupt):
            rag.add(docs, workers=2, listen=press)
        assert started and all(child._child.poll() is not None for child in started)
        assert not list(rag.library.path.glob("made-*")) and rag.library.verify() == []


def fail(setup, requests, tell):
    """A target: tells what it was asked, then raises."""
    for request in requests:
        tell(heard=[setup["name"], request])
        raise ConfigError("mine")


def test_a_child_serves_requests_and_says_what_it_raised():
    events: queue.SimpleQueue = queue.SimpleQueue()
    child = Child("tests.indexing.test_workers:fail", {"name": "é"}, events)
    child.send({"text": "a\nb"})
    assert events.get(timeout=120) == (child, {"heard": ["é", {"text": "a\nb"}]})
    told = events.get(timeout=120)[1]
    assert (told["error"], told["message"]) == ("ConfigError", "mine") and "in fail" in told["traceback"]
    assert events.get(timeout=120) == (child, None) and child.stop() == 1
