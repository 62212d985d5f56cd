"""Histories of a library, recorded and cut off by every state that a disk may be left in."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from sac_rag.errors import LibraryNotFound
from sac_rag.library import transaction
from sac_rag.library.library import Library
from tests.library import kill_worker
from tests.library.library_support import DIM, FINGERPRINT
from tests.reliability.crashes import CALLS, OPTIONS, Disk, read_log, states
from tests.reliability.parts import CannotRun, Found
from tests.reliability.tracing import is_there, traced

STEPS = 3
"""Changes in a history."""
SHORT = 60
"""A short piece judges one state in so many."""
REPAIR, MAKING = 8, 9
"""The history that mends a damaged library, and the one that makes a library."""


def piece(place: Path, number: int, short: bool) -> Found:
    if not is_there():
        raise CannotRun("strace is not installed")
    found, history = Found(), number % 10
    found.counts["histories"] += 1
    folder, log = place / "library", place / "strace.log"
    lag = transaction.INDEX_AT_ONCE, transaction.INDEX_LAG
    if number % 2:  # some commits write the FAISS file, some note what it lacks
        transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = 0, 2
    try:
        _history(place, folder, log, number, history, short, found)
    except PermissionError as error:
        raise CannotRun(f"strace may not attach here: {error}") from error
    finally:
        transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = lag
    return found


def _history(place: Path, folder: Path, log: Path, number: int, history: int, short: bool, found: Found) -> None:
    base: kill_worker.State = {} if history == MAKING else kill_worker.BASE
    if history != MAKING:
        with Library.create(folder, FINGERPRINT, dim=DIM, segment_bytes=kill_worker.SEGMENT_BYTES) as library:
            for uri, texts in base.items():
                kill_worker.apply(library, ("put", uri, texts))
    if history == REPAIR:
        kill_worker.damage(folder)
        warm = shutil.copytree(folder, place / "warm")
        kill_worker.mend(warm)
    before = {f.name: f.read_bytes() for f in folder.iterdir()} if folder.exists() else {}
    folder.mkdir(exist_ok=True)

    def job(pipe: int) -> None:
        if history == REPAIR:
            kill_worker.mend(folder)
        elif history == MAKING:
            Library.create(folder, FINGERPRINT, dim=DIM).close()
            kill_worker.work(folder, iter([("put", "a", ["word 1", "word 2"])]), pipe)
        else:
            kill_worker.work(folder, _changes(number), pipe)

    status, _ = traced(log, job, *OPTIONS, calls=CALLS)
    assert status == 0, status
    calls = read_log(log, folder)
    found.counts["calls"] += len(calls)
    cut = place / "cut" / "library"
    for n, (said, disk) in enumerate(states(before, calls)):
        found.counts["states"] += 1
        if short and n % SHORT != number % SHORT:
            continue
        found.counts["judged"] += 1
        _write(cut, disk)
        try:
            _judge(cut, history, base, said)
        except Exception as error:
            found.bad.append(f"history {number}, state {n}: {type(error).__name__}: {str(error)[:300]}")


def _changes(number: int) -> Iterator[kill_worker.Change]:
    """The scenario of the kills first, then random ones."""
    if number == 0:
        yield from kill_worker.SCENARIO
        return
    changes = kill_worker.random_changes(random.Random(f"history {number}"), kill_worker.BASE)
    for _ in range(STEPS):
        yield next(changes)


def _judge(folder: Path, history: int, base: kill_worker.State, said: bytes) -> None:
    if history == REPAIR:
        (folder.parent / "copy.sqlite").write_bytes((folder.parents[1] / "copy.sqlite").read_bytes())
        kept = kill_worker.mend(folder)
        assert kept.lost == [], kept.lost
        with Library.open(folder, write=True) as library:
            library.gc()
        kill_worker.judge(folder, base, base)
        return
    if history == MAKING:
        try:
            Library.open(folder).close()
        except LibraryNotFound:
            assert b'"done"' not in said, "a library with an acknowledged commit is not found"
            Library.create(folder, FINGERPRINT, dim=DIM).close()
    kill_worker.judge(folder, *kill_worker.possible(base, said))


def _write(folder: Path, disk: Disk) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in disk.items():
        path = folder / name
        path.write_bytes(content)
        os.chmod(path, 0o600)
