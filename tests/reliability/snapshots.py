"""Readers beside writers: all that is seen at once is of one commit, and none is lost."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from sac_rag.errors import LibraryLocked
from sac_rag.library.library import Library
from tests.library.library_support import DIM, FINGERPRINT, memory_of, passages_of, put, same, vector_of
from tests.reliability.parts import Found
from tests.reliability.tracing import fork

READERS, WRITERS = 2, 2
SNAPSHOTS, SHORT = 5000, 150
"""Of a piece, all readers together."""
DOCUMENTS = 3
SMALL_SEGMENTS = 3000


def piece(place: Path, number: int, short: bool) -> Found:
    folder, found = place / "library", Found()
    with Library.create(folder, FINGERPRINT, dim=DIM) as library:
        _stamp(library, 0, random.Random(0))
    each = (SHORT if short else SNAPSHOTS) // READERS
    stop = place / "stop"
    reads = [_child(lambda n=n: _read(folder, each, random.Random(f"{number} reader {n}"))) for n in range(READERS)]  # type: ignore[misc]
    writes = [_child(lambda n=n: _write(folder, stop, random.Random(f"{number} writer {n}"))) for n in range(WRITERS)]  # type: ignore[misc]
    for wait in reads:
        said = wait()
        found.counts["snapshots"] += said.get("snapshots", 0)
        found.counts["generations_seen"] += said.get("generations", 0)
        found.bad += said["bad"]
    stop.touch()
    told = 0
    for wait in writes:
        said = wait()
        told += said.get("commits", 0)
        found.counts["waits_for_the_lock"] += said.get("locked", 0)
        found.bad += said["bad"]
    found.counts["commits"] += told
    with Library.open(folder) as library:
        last = _judge(library)
        found.check(last == told, f"{told} commits were reported, the library holds the {last}th")
        found.check(library.verify() == [], f"after all: {library.verify()[:3]}")
    return found


def _stamp(library: Library, stamp: int, rng: random.Random) -> None:
    """One commit in which every document says the same number."""
    with library.transaction() as tx:
        for n in range(DOCUMENTS):
            texts = [f"word {stamp} {i}" for i in range(rng.randrange(1, 4))] + [f"word stays {n}"]
            put(tx, library, f"d{n}", texts)


def _judge(library: Library) -> int:
    """The stamp of what a reader sees; AssertionError where not all is of one commit."""
    library = library.pinned()
    passages = library.passages()
    stamps = {p.text.split()[1] for p in passages} - {"stays"}
    assert len(stamps) == 1, f"commits {sorted(stamps)} at once"
    assert {p.document for p in passages} == {f"d{n}" for n in range(DOCUMENTS)}
    for n in range(DOCUMENTS):
        own = [p for p in passages if p.document == f"d{n}"]
        assert own == passages_of(f"d{n}", [p.text for p in own])
    ids = [p.id for p in passages]
    for i, kv in zip(ids, library.load(ids), strict=True):
        assert same(kv, memory_of(i)), f"memory of {i}"
    hits = library.search(vector_of(ids[0]), None, len(ids) + 1, mode="dense")
    assert {h.passage.id for h in hits} == set(ids) and hits[0].passage.id == ids[0]
    assert library.head.passages == len(ids)
    return int(stamps.pop())


def _read(folder: Path, count: int, rng: random.Random) -> dict[str, object]:
    bad: list[str] = []
    stamps = set()
    newest = -1
    library = Library.open(folder)
    for n in range(count):
        try:
            if rng.random() < 0.1:
                library.close()
                library = Library.open(folder)
            else:
                library.refresh()
            stamp = _judge(library)
            if stamp < newest:
                bad.append(f"snapshot {n}: commit {stamp} after {newest}")
            newest = max(newest, stamp)
            stamps.add(stamp)
        except Exception as error:
            bad.append(f"snapshot {n}: {type(error).__name__}: {str(error)[:300]}")
    return {"snapshots": count, "generations": len(stamps), "bad": bad}


def _write(folder: Path, stop: Path, rng: random.Random) -> dict[str, object]:
    """Commit the next number again and again; gc and other writers in between."""
    bad: list[str] = []
    commits = locked = 0
    parent = os.getppid()
    while not stop.exists() and os.getppid() == parent:  # a run that is killed leaves no writer behind
        try:
            with Library.open(folder, write=True, segment_bytes=SMALL_SEGMENTS) as library:
                for _ in range(rng.randrange(1, 6)):
                    _stamp(library, _judge(library) + 1, rng)
                    commits += 1
                    if rng.random() < 0.3:
                        library.gc()
        except LibraryLocked as error:
            locked += 1
            if "is being written by" not in str(error) and "is busy" not in str(error):
                bad.append(f"the loser is told: {error}")
        except Exception as error:
            bad.append(f"writer: {type(error).__name__}: {str(error)[:300]}")
            break
        time.sleep(rng.random() * 0.02)
    return {"commits": commits, "locked": locked, "bad": bad}


def _child(job: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    """Start a job in a forked child; call the result for what it says."""
    read, write = os.pipe()

    def body() -> None:
        os.close(read)
        os.write(write, json.dumps(job()).encode()[:60_000])

    pid = fork(body)
    os.close(write)

    def wait() -> dict[str, object]:
        said = b""
        while part := os.read(read, 1 << 16):
            said += part
        os.close(read)
        _, status = os.waitpid(pid, 0)
        if status:
            return {"bad": [f"a process ended with {status}"]}
        result: dict[str, object] = json.loads(said)
        return result

    return wait
