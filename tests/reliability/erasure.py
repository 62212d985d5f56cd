"""Canaries in every place that holds words of a document; after `rm` and `gc` no file has them."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sac_rag import SacRag
from sac_rag.library import lexical_file
from sac_rag.pipeline import repair
from sac_rag.records import Document
from tests.reliability.parts import Found
from tests.reliability.small import config, models, sentences
from tests.reliability.tracing import fork

KINDS = (
    "text",
    "heading",
    "metadata",
    "name",
    "an old version",
    "a run that was killed",
    "a damaged catalog",
    "a lexical file",
)


def piece(place: Path, number: int, short: bool) -> Found:
    found, toys = Found(), models(place / "models")
    folder = place / "a.lib"
    canaries = {kind: f"zq{random.Random(f'{number} {kind}').getrandbits(64):016x}" for kind in KINDS}
    kept_from, lexical_file.KEPT_FROM = lexical_file.KEPT_FROM, 1
    try:
        stored = {kind for stage in _fill(folder, config(toys), canaries) for kind, files in stage.items() if files}
        for kind in KINDS:
            found.check(kind in stored, f"{kind}: the canary was nowhere to begin with")
        with SacRag.open(folder, write=True, dtype="float32") as rag:
            rag.remove([d.uri for d in rag.library.documents() if d.uri.startswith("secret")])
            rag.gc()
            found.check(len(rag.library.documents()) == 2, "documents that were to stay are gone")
        after = _where(canaries, [folder, place / "models" / "cache"])
        for kind in KINDS:
            found.check(not after[kind], f"{kind}: the canary is still in {after[kind]}")
        found.counts["canaries"] += len(KINDS)
        found.counts["files"] += len(list(folder.iterdir()))
    finally:
        lexical_file.KEPT_FROM = kept_from
    return found


def _fill(folder: Path, settings: object, canaries: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    """Files that hold each canary, at each stage."""
    with SacRag.open(folder, config=settings, write=True, create=True, dtype="float32") as rag:  # type: ignore[arg-type]
        rag.put([Document("stays", sentences("stays")), Document("stays too", sentences("too"))])
        rag.put(
            [
                Document("secret text", f"{sentences(1)} {canaries['text']} {sentences(2)}"),
                Document("secret heading", sentences(3), headings=((0, f"Part > {canaries['heading']}"),)),
                Document("secret meta", sentences(4), meta={"note": canaries["metadata"], canaries["metadata"]: 1}),
                Document(f"secret {canaries['name']}", sentences(5)),
                Document("secret words", f"{canaries['a lexical file']} {sentences(6)}"),
            ]
        )
        rag.put([Document("secret old", f"{sentences(7)} {canaries['an old version']}")])
        yield _where(canaries, [folder])
        rag.put([Document("secret old", sentences(8))])
    _killed(folder, canaries["a run that was killed"])
    yield _where(canaries, [folder])
    _damaged(folder, canaries["a damaged catalog"])
    yield _where(canaries, [folder])


def _killed(folder: Path, canary: str) -> None:
    """A writer dies in the middle of a commit, and leaves a hot journal and half of a file."""

    def body() -> None:
        db = sqlite3.connect(folder / "catalog.sqlite", isolation_level=None)
        db.execute("PRAGMA cache_size=1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE documents SET meta = json_set(meta, '$.x', ?)", (canary * 300,))
        db.execute("CREATE TABLE filler (x)")
        db.execute("INSERT INTO filler SELECT zeroblob(3000) FROM passages, passages")
        os._exit(1)

    os.waitpid(fork(body), 0)
    for name in ("seg-999.safetensors.tmp", "made-1-1.safetensors", "spool-left", "faiss-999.idx.tmp"):
        (folder / name).write_text(canary)
        (folder / name).chmod(0o600)


def _damaged(folder: Path, canary: str) -> None:
    """A catalog with a damaged row is mended, and kept beside the new one."""
    with SacRag.open(folder, write=True, dtype="float32") as rag:
        rag.put([Document("secret damaged", f"{canary} {sentences(9)}")])
    with contextlib.closing(sqlite3.connect(folder / "catalog.sqlite")) as db, db:
        db.execute("UPDATE passages SET text = text || ' changed' WHERE text LIKE '%' || ? || '%'", (canary,))
    repair(folder, dtype="float32")


def _where(canaries: dict[str, str], places: list[Path]) -> dict[str, list[str]]:
    """Files that hold a canary in any of the ways that words are stored."""
    forms: dict[str, Callable[[str], bytes]] = {"utf-8": str.encode, "utf-16": lambda c: c.encode("utf-16-le")}
    out: dict[str, list[str]] = {kind: [] for kind in canaries}
    for place in places:
        for path in sorted(p for p in place.rglob("*") if p.is_file()):
            raw = path.read_bytes() + path.name.encode()
            for kind, canary in canaries.items():
                if any(form(canary) in raw or form(canary.upper()) in raw for form in forms.values()):
                    out[kind].append(path.name)
    return out
