"""Progress bars of commands that do several things side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sac_cli import console


@contextlib.contextmanager
def run_bars() -> Iterator[Callable[[str, str, int, int], None] | None]:
    """A bar for each run under way and one for all of them, for people only."""
    if not console.shows_progress():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.err(), transient=True) as bar:
        tasks = {}

        def listen(name: str, reader: str, done: int, total: int) -> None:
            if (name, reader) not in tasks:
                tasks[name, reader] = bar.add_task(f"{name} {reader}", total=total)
            bar.update(tasks[name, reader], completed=done, visible=done < total)

        yield listen
