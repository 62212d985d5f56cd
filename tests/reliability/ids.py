"""Random changes against a dictionary: catalog, memories and FAISS hold the same ids after each."""

from __future__ import annotations

import random
from pathlib import Path

import faiss

from sac_rag.library import transaction
from sac_rag.library.library import Library
from tests.library import kill_worker
from tests.library.library_support import DIM, FINGERPRINT, check, passages_of
from tests.reliability.parts import Found

OPERATIONS, SHORT = 500, 40


def piece(place: Path, number: int, short: bool) -> Found:
    found, folder = Found(), place / "library"
    rng = random.Random(f"ids {number}")
    lag = transaction.INDEX_AT_ONCE, transaction.INDEX_LAG
    if number % 2:
        transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = 0, 2
    state: kill_worker.State = {}
    library = Library.create(folder, FINGERPRINT, dim=DIM, segment_bytes=kill_worker.SEGMENT_BYTES)
    try:
        changes = 0
        while changes < (SHORT if short else OPERATIONS):
            change = next(kill_worker.random_changes(rng, state))
            if change[0] == "remove" and change[1] not in state:
                continue
            kill_worker.apply(library, change)
            state = kill_worker.after(state, change)
            changes += 1
            found.counts["operations"] += 1
            if rng.random() < 0.2:
                library.close()
                library = Library.open(folder, write=True, segment_bytes=kill_worker.SEGMENT_BYTES)
                found.counts["reopened"] += 1
            try:
                _judge(library, folder, state)
            except Exception as error:
                found.bad.append(f"history {number}, operation {changes} {change}: {type(error).__name__}: {error}")
                return found
        found.check(library.verify() == [], f"history {number}: {library.verify()[:3]}")
    finally:
        library.close()
        transaction.INDEX_AT_ONCE, transaction.INDEX_LAG = lag
    return found


def _judge(library: Library, folder: Path, state: kill_worker.State) -> None:
    check(library, state)
    wanted = {p.id for uri in state for p in passages_of(uri, state[uri])}
    with Library.open(folder) as reader:
        catalog = reader._view.catalog
        keys = {key: i for i, key in catalog.keys(sorted(wanted)).items()}
        assert set(keys.values()) == wanted == {p.id for p in reader.passages()}
        assert {row[0] for row in catalog.rows("SELECT passage FROM memories")} == set(keys)
        file = folder / f"faiss-{reader.head.faiss}.idx"
        if reader.head.faiss is not None and not catalog.rows("SELECT * FROM unindexed"):
            index = faiss.read_index(str(file))
            assert set(faiss.vector_to_array(index.id_map).tolist()) == set(keys)
