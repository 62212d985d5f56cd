"""Progress of slow fetches: a callable for programs, a bar on standard error for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called as `progress(stage, done, total)`; done and total in bytes, total None while unknown."""


def silent(stage: str, done: int, total: int | None) -> None:
    """A Progress that shows nothing."""


@contextmanager
def reporting(progress: Progress | None = None) -> Iterator[Progress]:
    """`progress` itself; for None a bar on standard error if that is a terminal, else silence."""
    if progress is not None:
        yield progress
        return
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield show
