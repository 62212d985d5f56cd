"""Runs computed side by side: child processes of one thread each, which keep more cores busy than one of many threads.

Half the time of a small model on a CPU goes into kernels too short to be worth sharing among threads.
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sac_rag import errors
from sac_rag.errors import SacError
from sac_rag.evaluate.jobs import Job, Work, take
from sac_rag.models.fingerprints import weight_files
from sac_rag.models.loading import choose_device, choose_dtype
from sac_rag.models.sources import resolve_base

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sac_rag.evaluate.worker import main; main()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
_STOP_SECONDS = 5.0
WORKER_BYTES, WEIGHTS_HELD = 2 << 30, 3
"""Memory that a worker takes at most, roughly: so many bytes, and so many times the base model's weights."""


def suitable(runs: int, work: Work) -> int:
    """How many workers to start for so many runs: on a CPU one a core where memory allows it, elsewhere one."""
    device = choose_device(work.device)
    if device.type != "cpu":
        return 1
    wide = 2 if choose_dtype(work.dtype, device) == torch.float32 else 1
    weights = sum(f.stat().st_size for f in weight_files(resolve_base(work.model)))
    free = _free_bytes()
    fit = runs if free is None else free // (WORKER_BYTES + WEIGHTS_HELD * wide * weights)
    return max(1, min(runs, torch.get_num_threads(), fit))


def _free_bytes() -> int | None:
    """Memory that processes can still take; None where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def compute(
    jobs: Sequence[Job],
    work: Work,
    folder: Path,
    count: int,
    listen: Callable[[str, str, int, int], None] | None = None,
) -> None:
    """Compute jobs in `count` child processes; each run is stored in `folder` when it is done.

    Raises what a worker raised, if it is an error of ours, else SacError naming the run. However this ends, no worker
    is left.
    """
    left, events = list(jobs), queue.SimpleQueue[tuple[_Worker, Any]]()
    workers: list[_Worker] = []
    try:
        for _ in range(min(count, len(left))):
            workers.append(_Worker(work, folder, events))
            workers[-1].give(take(left, None))
        while any(worker.job for worker in workers):
            worker, event = events.get()
            if event is None and worker.job:
                raise SacError(
                    f"a worker died while it computed {worker.job.name} (code {worker.stop()}), perhaps for lack of "
                    f"memory: use fewer than {len(workers)} workers, or a smaller batch"
                )
            elif event is None:
                continue
            elif "error" in event and worker.job:
                raise _error(worker.job, event) from _Traceback(event["traceback"])
            elif "heard" in event and listen:
                listen(*event["heard"])
            elif "done" in event:
                held, worker.job = worker.job, None
                if left and held:
                    worker.give(take(left, held.variant.engine))
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A child process and the job it is at. Its events, and None at its end, go to a queue."""

    def __init__(self, work: Work, folder: Path, events: queue.SimpleQueue[tuple[_Worker, Any]]) -> None:
        self.job: Job | None = None
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(p) for p in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children
        )
        threading.Thread(target=self._hear, args=(events,), daemon=True).start()
        self._send({"work": asdict(work), "results": str(folder)})

    def give(self, job: Job) -> None:
        self.job = job
        self._send(job.to_mapping())

    def stop(self) -> int:
        """End it at once, and its exit code."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
            return self._child.wait(_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
            return self._child.wait()

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(value) + "\n")
            self._child.stdin.flush()
        except OSError:  # it died, as its last event will say
            pass

    def _hear(self, events: queue.SimpleQueue[tuple[_Worker, Any]]) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                events.put((self, json.loads(line)))
        events.put((self, None))


class _Traceback(Exception):
    """What a worker's error looked like where it was raised; shown as the cause."""


def _error(job: Job, event: Mapping[str, str]) -> SacError:
    """A worker's error as this process would have raised it, or with its run's name where it is none of ours."""
    known = errors.known(event["error"], event["message"])
    return known or SacError(f"{job.name} failed: {event['error']}: {event['message']}")
