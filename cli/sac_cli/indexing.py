"""What `sac index`, `sac add` and `sac demo` share: a progress bar while documents are compressed, a report after."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sac_cli import console, interrupts
from sac_rag.errors import DocumentError
from sac_rag.text.formats import format_of
from sac_rag.text.walk import os_reason, walk

if TYPE_CHECKING:
    from sac_rag.config import ReadConfig
    from sac_rag.indexing import IndexReport, Listen, Skip
    from sac_rag.library.sizes import Stats
    from sac_rag.pipeline import SacRag

SHOWN = 10
"""Lines on skipped files, and on notices, that are printed without -v."""
TOLD_S = 30.0
"""Seconds from one line of progress to the next where no bar can be drawn."""
NAMES_SHOWN = 3
"""Names printed for a reason without -v."""


def check_paths(paths: Sequence[str]) -> None:
    """Refuse a path that names nothing, and a folder that cannot be opened, before anything is loaded or made; patterns
    are judged where they are read."""
    for path in paths:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                os.scandir(path).close()
        except (FileNotFoundError, NotADirectoryError, ValueError):
            if not any(mark in path for mark in "*?["):
                raise DocumentError(path, "there is no such file or folder") from None
        except OSError as error:
            reason = f"{os_reason(error)}: make it readable, or leave it out"
            raise DocumentError(path, reason) from None


def check_files(paths: Sequence[str]) -> None:
    """Refuse paths without any file that may be read, before a library is made for them."""
    skipped: list[str] = []
    hidden = 0

    def skip(path: str, reason: str) -> None:
        skipped.append(reason)

    def ignore(path: str, files: int) -> None:
        nonlocal hidden
        hidden += files

    for path in walk(paths, on_skip=skip, on_ignored=ignore):
        if format_of(path) is None:
            skipped.append("unknown file type")
        elif not os.access(path, os.R_OK):
            skipped.append("permission denied")
        else:
            return
    raise _no_file(paths, hidden, skipped)


def _no_file(paths: Sequence[str], hidden: int, skipped: Sequence[str] = ()) -> DocumentError:
    """skipped: the reason of each file that was found and not read."""
    counts = [f"{count} {reason}" for reason, count in Counter(skipped).most_common()]
    counts += [f"{hidden} hidden by .gitignore"] if hidden else []
    reason = ", ".join(["no file to index", *counts])
    return DocumentError(", ".join(paths), f"{reason}; hidden and ignored files must be given by name")


def compress(
    rag: SacRag,
    paths: Sequence[str],
    *,
    sync: bool = False,
    strict: bool = False,
    workers: int | None = None,
    engine: str = "processes",
    reading: ReadConfig | None = None,
) -> IndexReport:
    """Index with a progress bar; Ctrl-C ends the command with exit code 130.

    Raises DocumentError when no file was found and no document removed.
    """
    try:
        with interrupts.remembered() as ctrl_c, _bar() as show:

            def listen(report: IndexReport) -> None:
                show(report)
                ctrl_c.check()

            how: dict[str, Any] = {"workers": workers, "engine": engine, "listen": listen, "reading": reading}
            report = rag.add(list(paths), sync=sync, strict=strict, **how)
    except KeyboardInterrupt:
        console.error("stopped: what is committed stays, and the same command goes on from there")
        raise typer.Exit(130) from None
    if not (report.files or report.skipped or report.removed):
        raise _no_file(paths, sum(skip.files for skip in report.ignored))
    return report


@contextmanager
def _bar() -> Iterator[Listen]:
    if not console.shows_progress():
        yield _told()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files  {task.fields[passages]:,} passages  {task.fields[speed]:,.0f} tokens/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console.err(), transient=True) as bar:
        task = bar.add_task("finding files", total=None, passages=0, speed=0.0)

        def listen(report: IndexReport) -> None:
            speed = report.tokens / report.seconds if report.seconds else 0.0
            # While files are being found their number is no total: a bar without one pulses.
            total = None if report.step == "finding files" else report.files
            bar.update(
                task,
                description=report.step,
                total=total,
                completed=report.done + report.ahead,
                passages=report.passages,
                speed=speed,
            )

        yield listen


def _told() -> Listen:
    """A line on standard error now and then, where no bar can be drawn."""
    last = time.monotonic()

    def listen(report: IndexReport) -> None:
        nonlocal last
        if not console.state.quiet and time.monotonic() - last >= TOLD_S:
            last = time.monotonic()
            done = f"{report.done + report.ahead:.0f} of {report.files} files"
            console.hint(f"{report.step}: {done}, {report.passages:,} passages, {report.tokens:,} tokens")

    return listen


def report_dict(rag: SacRag, report: IndexReport) -> dict[str, Any]:
    """The JSON of an indexing run."""
    stats, old = rag.stats(), stale(rag, report)
    return {
        **({"stale": old} if old else {}),
        "library": str(rag.library.path),
        "files": report.files,
        "added": report.added,
        "changed": report.changed,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "skipped": [{"path": s.path, "reason": s.reason, "files": s.files} for s in left_out(report)],
        "reasons": reasons_of(report),
        "notices": [{"path": n.path, "notice": n.text} for n in report.notices],
        "passages": report.passages,
        "tokens": report.tokens,
        "seconds": report.seconds,
        "bytes": stats.total_bytes,
        "bytes_per_source_token": stats.bytes_per_source_token,
    }


def stale(rag: SacRag, report: IndexReport) -> list[str]:
    """Documents whose version of before still answers, since the newer one could not be read."""
    skipped = [Path(skip.path).as_posix() for skip in report.skipped]
    return [d.uri for d in rag.library.documents(skipped) if d.stale]


def left_out(report: IndexReport) -> list[Skip]:
    """Everything that was found and not indexed."""
    return report.skipped + report.ignored


def reasons_of(report: IndexReport) -> dict[str, int]:
    """How many files were not indexed for each reason, the commonest first."""
    counts: Counter[str] = Counter()
    for skip in left_out(report):
        counts[skip.reason] += skip.files
    return dict(counts.most_common())


def per_token(stats: Stats) -> str:
    """Bytes of memory alone, which grow with the text, and of all files."""
    memory = stats.kv_bytes / stats.source_tokens if stats.source_tokens else 0.0
    return f"{memory:.0f} of memory, {stats.bytes_per_source_token:.0f} in all"


def show(rag: SacRag, report: IndexReport, *, as_json: bool) -> None:
    """Print a report; a run that found nothing readable at all is a failure."""
    if as_json:
        console.emit(report_dict(rag, report))
    else:
        stats = rag.stats()
        reasons = reasons_of(report)
        why = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        skipped = f"{sum(reasons.values())} ({why})" if why else "0"
        console.pairs(
            [
                ("added", report.added),
                ("changed", report.changed),
                ("unchanged", report.unchanged),
                ("removed", report.removed),
                ("skipped", skipped),
                ("passages", report.passages),
                ("tokens", report.tokens),
                ("seconds", f"{report.seconds:.1f}"),
                ("bytes", f"{console.size(stats.total_bytes)}, of it memory {console.size(stats.kv_bytes)}"),
                ("bytes per source token", per_token(stats)),
            ]
        )
        _lines([f"{notice.path}: {notice.text}" for notice in report.notices])
        _lines(_skips(report))
        if any(reason.startswith(("file over", "text over", "parsing ")) for reason in reasons):
            console.hint("--file-bytes, --text-chars, --cpu-s, --wall-s and --memory-bytes raise these limits")
        for uri in stale(rag, report):
            console.notice(f"the version of {uri} from before stays and answers: `sac rm` forgets it")
    if report.skipped and not report.added + report.changed + report.unchanged:
        console.error("no readable document under the given paths")
        raise typer.Exit(1)


def _skips(report: IndexReport) -> list[str]:
    """A line for each reason with its first names; with -v one for each file."""
    found = left_out(report)
    if console.state.verbose:
        return [f"skipped {skip.path}: {skip.reason}" for skip in found]
    lines = []
    for reason, count in reasons_of(report).items():
        names = [skip.path for skip in found if skip.reason == reason]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        shown = ", ".join(names[:NAMES_SHOWN]) + more
        lines.append(f"skipped {shown}: {reason}" if count == 1 else f"skipped {count} files, {reason}: {shown}")
    return lines


def _lines(lines: Sequence[str]) -> None:
    shown = lines if console.state.verbose else lines[:SHOWN]
    for line in shown:
        console.notice(line)
    if more := len(lines) - len(shown):
        console.hint(f"\u2026 and {more} more (-v shows all)")
