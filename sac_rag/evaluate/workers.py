"""Runs computed side by side: child processes of one thread each, which keep more cores busy than one of many threads.

Half the time of a small model on a CPU goes into kernels too short to be worth sharing among threads.
"""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sac_rag.errors import SacError
from sac_rag.evaluate.jobs import Job, Work, take
from sac_rag.models.fingerprints import weight_files
from sac_rag.models.loading import choose_device, choose_dtype
from sac_rag.models.sources import resolve_base
from sac_rag.processes import Child, raise_error

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
    left, events = list(jobs), queue.SimpleQueue[tuple[Child, Any]]()
    at: dict[Child, Job | None] = {}
    setup = {"work": asdict(work), "results": str(folder)}

    def give(child: Child, job: Job) -> None:
        at[child] = job
        child.send(job.to_mapping())

    try:
        for _ in range(min(count, len(left))):
            child = Child("sac_rag.evaluate.worker:work", setup, events)
            give(child, take(left, None))
        while any(at.values()):
            child, event = events.get()
            job = at[child]
            if event is None and job:
                raise SacError(
                    f"a worker died while it computed {job.name} (code {child.stop()}), perhaps for lack of "
                    f"memory: use fewer than {len(at)} workers, or a smaller batch"
                )
            if event is None or job is None:
                continue
            raise_error(event, job.name)
            if "heard" in event and listen:
                listen(*event["heard"])
            elif "done" in event:
                at[child] = None
                if left:
                    give(child, take(left, job.variant.engine))
    finally:
        for child in at:
            child.stop()
