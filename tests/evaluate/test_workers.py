"""Child processes that compute runs: the same runs as here, longest first, and nothing left behind."""

from __future__ import annotations

import dataclasses
import os
import queue
import shutil
import signal
import threading

import pytest
import torch

from sac_rag import processes
from sac_rag.errors import AdapterError, ConfigError, SacError
from sac_rag.evaluate import workers
from sac_rag.evaluate.harness import ALL, evaluate
from sac_rag.evaluate.jobs import Job, Variant, Work, take
from sac_rag.evaluate.readers import reader_of
from sac_rag.evaluate.results import Results
from sac_rag.evaluate.tasks import Task
from sac_rag.train.data import Question
from tests.conftest import without_hashes


def timeless(runs):
    return [dataclasses.replace(r, seconds=1.0, examples_per_s=1.0, peak_mib=None) for r in runs]


@pytest.fixture
def started(monkeypatch):
    """The child processes that were started."""
    made, whole = [], processes.subprocess.Popen

    def start(*args, **kwargs):
        made.append(whole(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    return made


def test_workers_compute_what_one_process_computes(write_set, tiny, tiny_adapter, tmp_path, started):
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    data = bytearray((without_hashes(other) / "adapter.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "adapter.safetensors").write_bytes(data)
    files = {"a": [write_set("lamps"), write_set("keys", contexts=4)], "b": [write_set("boats", questions=1)]}
    wanted = {
        **tiny,
        "readers": ("closed", "text", "memory", "full-ft"),
        "adapter": {"one": tiny["adapter"], "two": str(other)},
    }
    heard = []
    side = evaluate(files, workers=2, results=Results(tmp_path / "r"), listen=lambda *a: heard.append(a), **wanted)
    assert len(started) == 2 and all(child.poll() == 0 for child in started)
    kept = Results(tmp_path / "r")
    here = evaluate(files, workers=1, results=kept, **wanted)
    assert kept.taken == 15 and here == side  # stored under the same keys, whatever computed them
    assert timeless(evaluate(files, **wanted)) == timeless(side)
    assert all(r.seconds > 0 and (r.peak_mib is None or 10 < r.peak_mib < 1e5) for r in side)
    assert {(h[0], h[1]) for h in heard if h[2] == h[3]} >= {
        ("lamps", "closed"),
        ("keys", "sac 5x two"),
        (ALL, "15 runs"),
    }
    assert max(h[3] for h in heard) == 5 * (6 + 8 + 3)


def test_workers_need_no_folder_of_results(write_set, tiny, started):
    files = [write_set("lamps"), write_set("keys")]
    assert timeless(evaluate(files, workers=5, **tiny)) == timeless(evaluate(files, **tiny))
    assert len(started) == 2  # never more than there are runs


def test_one_missing_run_is_computed_here(write_set, tiny, tmp_path, started):
    files = [write_set("lamps"), write_set("keys")]
    evaluate(files[:1], results=Results(tmp_path), **tiny)
    evaluate(files, workers=2, results=Results(tmp_path), **tiny)
    assert not started


def test_an_error_of_a_worker_is_raised_as_it_was_and_the_others_stop(write_set, tiny, tmp_path, started):
    with pytest.raises(ConfigError, match="unknown prompt 'poem'") as caught:
        evaluate([write_set("lamps"), write_set("keys")], prompts=("poem",), workers=2, **tiny)
    assert "in work" in str(caught.value.__cause__)
    assert all(child.poll() is not None for child in started)
    bad = shutil.copytree(tiny["adapter"], tmp_path / "bad")
    (bad / "adapter.safetensors").write_bytes(b"no tensors")
    with pytest.raises(AdapterError):
        evaluate([write_set("lamps"), write_set("keys")], workers=2, **{**tiny, "adapter": str(bad)})


def test_a_worker_that_is_killed_is_named_with_its_run(write_set, tiny, tmp_path, started):
    heard = threading.Event()

    def kill():
        heard.wait(600)
        os.kill(started[0].pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    files = [write_set(name, contexts=40, questions=4) for name in ("lamps", "keys")]
    with pytest.raises(
        SacError, match=r"died while it computed (lamps|keys), sac 5x \(code -9\).*fewer than 2 workers"
    ):
        evaluate(files, workers=2, batch=4, listen=lambda *_: heard.set(), **tiny)
    assert all(child.poll() is not None for child in started)


def test_ctrl_c_stops_workers_and_keeps_what_is_stored(write_set, tiny, tmp_path, started):
    small, large = write_set("lamps", contexts=1), write_set("boats", contexts=120, questions=4)

    def listen(name, label, done, total):
        if len(list(tmp_path.glob("r/*.json"))) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        evaluate([small, large], workers=2, batch=4, results=Results(tmp_path / "r"), listen=listen, **tiny)
    assert all(child.poll() is not None for child in started)
    results = Results(tmp_path / "r")
    runs = evaluate([small, large], limit=None, results=results, **tiny)
    assert results.taken >= 1 and [r.n for r in runs[:2]] == [2, 480]


def test_a_worker_ends_with_its_parent(write_set, tiny, tmp_path):
    events = queue.SimpleQueue()
    work = Work(tiny["model"], None, 0, 1, "cpu", "float32")
    setup = {"work": dataclasses.asdict(work), "results": str(tmp_path)}
    worker = processes.Child("sac_rag.evaluate.worker:work", setup, events)
    worker._child.stdin.close()  # as the system closes it when the parent dies
    assert events.get(timeout=600) == (worker, None) and worker.stop() == 0


def job(cost, adapter="a", reader="memory"):
    return Job(Variant(reader, "sac", adapter), "f", 1, cost, {"set": str(cost)})


def test_long_jobs_go_first_and_stay_with_their_adapter():
    left = [job(c, a) for c, a in ((10, "a"), (100, "a"), (60, "b"), (45, "a"), (90, "b"), (20, "b"))]
    order, held = [], None
    while left:
        chosen = take(left, held)
        held = chosen.variant.engine
        order.append((chosen.cost, chosen.variant.adapter))
    # 45 is half of 90 at least, so a is not left for it; 10 is less than half of 90.
    assert order == [(100, "a"), (45, "a"), (90, "b"), (60, "b"), (20, "b"), (10, "a")]
    left = [job(c) for c in (3, 1, 2)]
    assert [take(left, None).cost for _ in range(3)] == [3, 2, 1]


def test_costs_follow_what_a_reader_reads():
    q = Question("", "?", ("a",))
    task = Task("t", (("x" * 1000, (q,) * 3), ("x" * 500, (q,))))
    assert [reader_of(r).cost(task) for r in ("closed", "memory", "full-ft", "text")] == [1600, 3100, 3100, 5100]


def test_jobs_survive_their_way_to_a_worker(write_set, tiny):
    import json

    made = Job(
        Variant("memory", "sac", "x", "one", 5.0, "chat"), "f.jsonl", 3, 10, {"set": "f", "layout": {"end": "\n"}}
    )
    again = Job.from_mapping(json.loads(json.dumps(made.to_mapping())))
    assert again.variant == made.variant and again.settings == made.settings
    assert (again.file, again.questions, again.cost) == (made.file, made.questions, made.cost)
    assert made.name == "f, sac 5x one chat" and job(1, reader="text").variant.label == "text"


def test_as_many_workers_as_cores_runs_and_memory_allow(tiny, monkeypatch):
    work = Work(tiny["model"], None, 0, 1, "cpu", "float32")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(workers, "_free_bytes", lambda: 1 << 40)
    assert [workers.suitable(runs, work) for runs in (0, 1, 3, 9)] == [1, 1, 3, 4]
    monkeypatch.setattr(workers, "_free_bytes", lambda: (7 << 30) - 1)
    assert workers.suitable(9, work) == 3  # 2 GiB each and some for the weights
    monkeypatch.setattr(workers, "_free_bytes", lambda: 1 << 20)
    assert workers.suitable(9, work) == 1
    monkeypatch.setattr(workers, "_free_bytes", lambda: None)
    assert workers.suitable(9, work) == 4
    monkeypatch.setattr(workers, "choose_device", lambda _: torch.device("cuda"))
    assert workers.suitable(9, work) == 1
