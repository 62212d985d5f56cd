"""Kills a writer again and again and checks what is left. Run as a process of its own, warm, forking per kill.

    kill_worker.py moments <folder> <count> <seed>    SIGKILL at random moments
    kill_worker.py syscalls <folder> <share>          SIGKILL before each mutating system call, by strace
    kill_worker.py repairs <folder> <share>           likewise, of the repair of a damaged library

The child says on a pipe what it is about to do and what has been committed. After each kill the library must be in
the state after the last acknowledged change, or, whole, in that after the change under way. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from library_support import (  # noqa: E402
    DIM,
    FINGERPRINT,
    State,
    check,
    held,
    memory_of,
    put,
    put_made,
    vector_of,
)

from sac_rag.library import made, transaction  # noqa: E402
from sac_rag.library.catalog import Head  # noqa: E402
from sac_rag.library.codecs import get_codec  # noqa: E402
from sac_rag.library.library import Library  # noqa: E402
from sac_rag.library.repair import Remade, RepairReport, repair  # noqa: E402
from sac_rag.records import Passage  # noqa: E402
from tests.reliability.tracing import fork, points_of, traced  # noqa: E402

Change = tuple[str, str, list[str]]
"""("put", uri, texts), ("made", uri, texts), ("remove", uri, []) or ("gc", "", [])."""

SEGMENT_BYTES = 4000


def after(state: State, change: Change) -> State:
    kind, uri, texts = change
    new = dict(state)
    if kind in ("put", "made"):
        new[uri] = texts
    elif kind == "remove":
        new.pop(uri, None)
    return new


def apply(library: Library, change: Change) -> None:
    kind, uri, texts = change
    if kind == "gc":
        library.gc()
        return
    if kind == "made":
        put_made(library, uri, texts)
        return
    with library.transaction() as tx:
        if kind == "put":
            put(tx, library, uri, texts)
        else:
            tx.remove_document(uri)


def random_changes(rng: random.Random, state: State) -> Iterator[Change]:
    while True:
        kind = rng.choices(["put", "made", "remove", "shorten", "gc"], [3, 3, 2, 1, 2])[0]
        uri = f"d{rng.randrange(6)}"
        texts = [f"word {rng.randrange(40)}" for _ in range(rng.randrange(1, 7))]
        if kind == "shorten":
            kind, texts = "put", state.get(uri, [])[:-1]
        nothing = kind in ("put", "made") and not texts
        change: Change = ("gc", "", []) if kind == "gc" or nothing else (kind, uri, texts)
        yield change
        state = after(state, change)


def work(folder: Path, changes: Iterator[Change], pipe: int) -> None:
    """In the child: announce, apply, acknowledge."""
    with Library.open(folder, write=True, segment_bytes=SEGMENT_BYTES) as library:
        for change in changes:
            os.write(pipe, json.dumps(["start", change]).encode() + b"\n")
            apply(library, change)
            os.write(pipe, b'["done"]\n')


def possible(state: State, log: bytes) -> tuple[State, State]:
    """(state after the last acknowledged change, state if the change under way counts too)."""
    state = dict(state)
    under_way: Change | None = None
    for line in log.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        word, *rest = json.loads(line)
        if word == "start":
            under_way = rest[0]
        elif under_way:
            state, under_way = after(state, under_way), None
    return state, after(state, under_way) if under_way else state


def judge(folder: Path, acknowledged: State, perhaps: State) -> State:
    """Everything acknowledged is there, whole; reading needs no writer first, and writing resumes."""
    with Library.open(folder, fingerprint=FINGERPRINT) as reader:
        assert reader.verify() == [], reader.verify()
        now = held(reader)
        assert now in (acknowledged, perhaps), (now, acknowledged, perhaps)
        check(reader, now)
    with Library.open(folder, fingerprint=FINGERPRINT, write=True, segment_bytes=SEGMENT_BYTES) as library:
        apply(library, ("put", "resumed", ["word again"]))
        apply(library, ("remove", "resumed", []))
        names = {"catalog.sqlite", "writer.lock"} | {f"seg-{u.number}.safetensors" for u in library.stats().segments}
        names |= {f"faiss-{library.head.faiss}.idx"} if library.head.faiss else set()
        assert set(os.listdir(folder)) == names, os.listdir(folder)
        assert library.verify() == []
    return now


def moments(folder: Path, count: int, seed: int) -> dict[str, object]:
    transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = (
        0,
        2,
    )  # some commits write the FAISS file, some note what it lacks
    rng, state, committed = random.Random(seed), State(), 0
    Library.create(folder, FINGERPRINT, dim=DIM).close()
    for n in range(count):
        read_end, write_end = os.pipe()
        changes = random_changes(random.Random(f"{seed} {n}"), state)
        pid = fork(lambda c=changes, w=write_end: work(folder, c, w))  # type: ignore[misc]
        os.close(write_end)
        log, commits = b"", rng.randrange(4)
        while log.count(b'["done"]') < commits or not log:
            log += os.read(read_end, 1 << 16)
        time.sleep(rng.choice([0.0, 0.003, 0.01, 0.03, 0.1]) * rng.random())
        os.kill(pid, signal.SIGKILL)
        while part := os.read(read_end, 1 << 16):
            log += part
        os.close(read_end)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"the writer ended by itself: {status}"
        committed += log.count(b'["done"]')
        state = judge(folder, *possible(state, log))
    return {"kills": count, "committed": committed, "documents": len(state)}


SCENARIO: list[Change] = [
    ("put", "b", ["word 4", "word 2", "word 5"]),
    ("made", "c", ["word 6", "word 7"]),
    ("remove", "a", []),
    ("gc", "", []),
]
BASE: State = {"a": ["word 1", "word 2"], "b": ["word 3", "word 4"]}


def syscalls(folder: Path, share: int) -> dict[str, object]:
    base, run, log = folder / "base", folder / "run", folder / "strace.log"
    with Library.create(base, FINGERPRINT, dim=DIM, segment_bytes=SEGMENT_BYTES) as library:
        for uri, texts in BASE.items():
            apply(library, ("put", uri, texts))
    shutil.copytree(base, run)

    def job(pipe: int) -> None:
        work(run, iter(SCENARIO), pipe)

    try:
        status, said = traced(log, job)
    except PermissionError as e:
        return {"skip": f"strace may not attach here: {e}"}
    assert status == 0, status
    final, _ = possible(BASE, said)
    judge(run, final, final)
    points = points_of(log)
    done: Counter[str] = Counter()
    for name, nth in points[::share]:
        shutil.rmtree(run)
        shutil.copytree(base, run)
        status, said = traced(log, job, "-e", f"inject={name}:signal=KILL:when={nth}")
        assert os.WIFSIGNALED(status), (name, nth, status)
        judge(run, *possible(BASE, said))
        done[name] += 1
    return {"points": len(points), "kills": sum(done.values()), "by_call": dict(done)}


def damage(folder: Path) -> None:
    """A segment and a passage's row are lost; the row stands in the copy beside the library."""
    shutil.copy(folder / "catalog.sqlite", folder.parent / "copy.sqlite")
    (folder / "seg-1.safetensors").unlink()
    with sqlite3.connect(folder / "catalog.sqlite") as db:
        db.execute("UPDATE passages SET text = 'other' WHERE text = 'word 4'")
    db.close()


def mend(folder: Path) -> RepairReport:
    def remake(head: Head, compress: Sequence[Passage], embed: Sequence[Passage]) -> Remade:
        pairs = [(p.id, memory_of(p.id)) for p in compress]
        return Remade(made.write(folder, get_codec(head.codec), pairs), {p.id: vector_of(p.id) for p in embed})

    return repair(folder, remake, folder.parent / "copy.sqlite")


def repairs(folder: Path, share: int) -> dict[str, object]:
    """Kill a repair at any point: a second one ends with the whole library."""
    base, run, log = folder / "base", folder / "run", folder / "strace.log"
    with Library.create(base, FINGERPRINT, dim=DIM, segment_bytes=SEGMENT_BYTES) as library:
        for uri, texts in BASE.items():
            apply(library, ("put", uri, texts))
    damage(base)
    shutil.copytree(base, run)
    mend(run)  # what is imported at first use is imported now
    shutil.rmtree(run)
    shutil.copytree(base, run)

    def job(pipe: int) -> None:
        mend(run)

    try:
        status, _ = traced(log, job)
    except PermissionError as e:
        return {"skip": f"strace may not attach here: {e}"}
    assert status == 0, status
    points, done = points_of(log), Counter[str]()
    for name, nth in points[::share]:
        shutil.rmtree(run)
        shutil.copytree(base, run)
        status, _ = traced(log, job, "-e", f"inject={name}:signal=KILL:when={nth}")
        assert os.WIFSIGNALED(status), (name, nth, status)
        assert mend(run).lost == []
        with Library.open(run, write=True) as library:
            library.gc()
        judge(run, BASE, BASE)
        done[name] += 1
    return {"points": len(points), "kills": sum(done.values()), "by_call": dict(done)}


if __name__ == "__main__":
    mode, where, *numbers = sys.argv[1:]
    mode_of = {"moments": moments, "syscalls": syscalls, "repairs": repairs}
    print(json.dumps(mode_of[mode](Path(where), *map(int, numbers))))
