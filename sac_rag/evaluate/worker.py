"""What a child process of `workers` does: compute one run after the other, and store each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sac_rag.processes import Tell


def work(setup: Mapping[str, Any], jobs: Iterator[Mapping[str, Any]], tell: Tell) -> None:
    """Compute jobs with what they share; see `processes.Child`."""
    import torch

    from sac_rag.evaluate.harness import Engines, run_job
    from sac_rag.evaluate.jobs import Job, Work
    from sac_rag.evaluate.results import Results
    from sac_rag.evaluate.tasks import Task, load_task

    torch.set_num_threads(1)
    shared, results = Work(**setup["work"]), Results(setup["results"])
    engines, tasks = Engines(shared), dict[str, Task]()

    def listen(name: str, label: str, done: int, total: int) -> None:
        tell(heard=(name, label, done, total))

    for values in jobs:
        job = Job.from_mapping(values)
        if job.file not in tasks:
            tasks[job.file] = load_task(job.file, limit=shared.limit, seed=shared.seed)
        scored = run_job(job, tasks[job.file], engines.of(job.variant), shared.batch, listen)
        results.keep(scored, job.settings)
        tell(done=job.name)
