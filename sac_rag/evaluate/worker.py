"""The child process of `workers`: computes one run after the other and stores it.

A line of JSON in: what all jobs share, then a job a line. A line of JSON out: progress, a finished job, or an error.
It ends with its standard input, whatever it is doing: a parent that stops or dies leaves no process behind.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from typing import Any


def main() -> None:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_feed, args=(lines,), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no line of ours

    def tell(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    try:
        _work(lines, tell)
    except BaseException as error:
        tell(error=type(error).__name__, message=str(error), traceback=traceback.format_exc())
        os._exit(1)


def _feed(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # a run is stored whole or not at all


def _work(lines: queue.SimpleQueue[str], tell: Any) -> None:
    import torch

    from sac_rag.evaluate.harness import Engines, run_job
    from sac_rag.evaluate.jobs import Job, Work
    from sac_rag.evaluate.results import Results
    from sac_rag.evaluate.tasks import Task, load_task

    torch.set_num_threads(1)
    first = json.loads(lines.get())
    work, results = Work(**first["work"]), Results(first["results"])
    engines, tasks = Engines(work), dict[str, Task]()

    def listen(name: str, label: str, done: int, total: int) -> None:
        tell(heard=(name, label, done, total))

    while True:
        job = Job.from_mapping(json.loads(lines.get()))
        if job.file not in tasks:
            tasks[job.file] = load_task(job.file, limit=work.limit, seed=work.seed)
        scored = run_job(job, tasks[job.file], engines.of(job.variant), work.batch, listen)
        results.keep(scored, job.settings)
        tell(done=job.name)
