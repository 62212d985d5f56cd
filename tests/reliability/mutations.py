"""Files changed at random: a typed error or the right answer, in bounded time and memory; then repair."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sac_rag import SacRag
from sac_rag.errors import LibraryCorrupt, LibraryError, SacError
from sac_rag.library import made
from sac_rag.library.codecs import get_codec
from sac_rag.library.library import Library
from sac_rag.library.repair import Remade, RepairReport, repair
from sac_rag.records import Document, Passage
from tests.library.library_support import DIM, FINGERPRINT, check, check_part, fill, held, memory_of, vector_of
from tests.reliability import small
from tests.reliability.parts import Found
from tests.reliability.tracing import fork

SHARE = {"library": 320, "adapter": 30, "model": 30, "config": 20}
"""Mutations of each kind in a piece. One of a model or an adapter takes as long as ten of a library."""
SHORT = {"library": 12, "adapter": 3, "model": 3, "config": 3}
CPU_S, WALL_S, MEMORY_MB = 20, 900, 1000
"""What one mutation may cost; wall time is for hangs alone, as the machine may be busy."""
STATE = {
    "a": ["word a1", "word a2", "word a3"],
    "b": ["word b1"],
    "c": ["word c1 " + "long " * 300],
    **{f"d{i}": [f"word d{i} {j} " + "text " * 40 for j in range(2)] for i in range(4)},
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 1e308, 0.5, "", "x", "../../etc/passwd", "\0", [], {}, [[]], {"a": 1}),
    *("9" * 5000, [0] * 3000, "default", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")),
)
TOML = """library = "my.lib"
quiet = true

[ask]
k = 3
search = "hybrid"
max_new_tokens = 16

[ls]
json = true
"""

Mutation = Callable[[Path, random.Random], str]
"""(folder of a case, chance) -> what was changed; then judged by the kind's own check."""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One change as rot, a bad disk or a forger make it."""
    raw, at = bytearray(data), rng.randrange(max(1, len(data)))
    kind = rng.choice(["bit", "bit", "bit", "byte", "cut", "zeros", "ones", "longer", "swap", "huge", "copy"])
    if kind == "bit" and raw:
        raw[at] ^= 1 << rng.randrange(8)
    elif kind == "byte" and raw:
        raw[at] = rng.randrange(256)
    elif kind == "cut":
        del raw[at:]
    elif kind == "zeros":
        raw[at : at + 512] = bytes(len(raw[at : at + 512]))
    elif kind == "ones":
        raw[at : at + 8] = b"\xff" * len(raw[at : at + 8])
    elif kind == "longer":
        raw += rng.randbytes(rng.randrange(1, 400))
    elif kind == "swap":
        other = rng.randrange(max(1, len(data)))
        raw[at : at + 64], raw[other : other + 64] = raw[other : other + 64], raw[at : at + 64]
    elif kind == "copy":
        other = rng.randrange(max(1, len(data)))
        raw[at:at] = raw[other : other + 256]
    else:
        raw[at : at + 8] = (1 << 62).to_bytes(8, rng.choice(("big", "little")))[: len(raw[at : at + 8])]
    return bytes(raw)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text with another value somewhere, or a field less or more."""
    whole = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(whole)
    if places:
        holder, key = rng.choice(places)
        if rng.random() < 0.15 and isinstance(holder, dict):
            del holder[key]
        elif rng.random() < 0.1 and isinstance(holder, dict):
            holder["surplus"] = rng.choice(ODD)
        else:
            holder[key] = rng.choice(ODD)
    return json.dumps(whole).encode()


def change(path: Path, rng: random.Random) -> None:
    """Mutate a file in place, with times of its own."""
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_bytes(mutate_json(data, rng))
    else:
        path.write_bytes(mutate(data, rng))


def piece(place: Path, number: int, short: bool) -> Found:
    found = Found()
    toys = small.models(place / "models")
    _library(place / "sound")
    config = small.config(toys)
    with SacRag.open(place / "a.lib", config=config, write=True, create=True, dtype="float32") as rag:
        rag.put([Document(f"d{n}", small.sentences(n)) for n in range(3)])
    expected = _answer(place)
    assert _answer(place) == expected
    small.forget_models()
    (place / "work").mkdir()
    with SacRag.open(place / "work" / "my.lib", config=config, write=True, create=True, dtype="float32") as rag:
        rag.put([Document("d", small.sentences(1))])
    small.forget_models()
    kinds: dict[str, Callable[[random.Random], str | None]] = {
        "library": lambda rng: _judge_library(place, rng),
        "adapter": lambda rng: _judge_model(place, [toys.adapter], rng, expected),
        "model": lambda rng: _judge_model(place, [toys.base, toys.embedder], rng, expected),
        "config": lambda rng: _judge_config(place / "work", rng),
    }
    for folder in (toys.adapter, toys.base, toys.embedder):
        shutil.copytree(folder, place / "kept" / folder.name)
    for kind, judge in kinds.items():
        _batch(found, kind, (SHORT if short else SHARE)[kind], number, judge)
    return found


def _batch(found: Found, kind: str, count: int, number: int, judge: Callable[[random.Random], str | None]) -> None:
    """Judge so many mutations in forked children; one that dies costs its mutation, and another goes on."""
    n = 0
    while n < count:
        read, write = os.pipe()

        def body(first: int = n, pipe: int = write) -> None:
            before = _peak_mb()
            for i in range(first, count):
                signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF ends the process
                signal.alarm(WALL_S)
                try:
                    wrong = judge(random.Random(f"{kind} {number} {i}"))
                except BaseException as error:
                    wrong = f"{type(error).__name__}: {str(error)[:200]}"
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                if (grown := _peak_mb() - before) > MEMORY_MB:
                    wrong = f"{wrong or ''} it took {grown:.0f} MB"
                    before = _peak_mb()
                os.write(pipe, json.dumps([i, wrong]).encode() + b"\n")

        pid = fork(body)
        os.close(write)
        said = b""
        while part := os.read(read, 1 << 16):
            said += part
        os.close(read)
        _, status = os.waitpid(pid, 0)
        for i, wrong in map(json.loads, said.splitlines()):
            n = i + 1
            found.check(wrong is None, f"{kind} {number}.{i}: {wrong}")
        if status:
            found.bad.append(f"{kind} {number}.{n}: the process ended with {os.waitstatus_to_exitcode(status)}")
            n += 1
    found.counts["mutations"] += count
    found.counts[f"of_{kind}"] += count


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- a library ---------------------------------------------------------------------------------------------


def _library(folder: Path) -> None:
    with Library.create(folder, FINGERPRINT, dim=DIM) as library:
        for uri, texts in STATE.items():
            fill(library, {uri: texts})


def _judge_library(place: Path, rng: random.Random) -> str | None:
    path, sound = place / "library", place / "sound"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, path)
    names = [n for n in sorted(os.listdir(sound)) if n != "writer.lock"]
    chosen = rng.sample(["catalog.sqlite", *rng.sample(names, 2)], rng.choice((1, 1, 2)))
    for name in chosen:
        change(path / name, rng)
    what = f"{sorted(set(chosen))}"
    try:
        with Library.open(path, write=rng.random() < 0.3) as library:
            (check_part if library.notice else check)(library, STATE)
    except LibraryError:
        pass
    alone = rng.random() < 0.5
    try:
        report = _repaired(path, None if alone else sound)
    except LibraryCorrupt as error:
        return None if alone and "copy" in str(error) else f"{what}: repair: {error}"
    with Library.open(path, write=True) as library:
        left = [p for p in library.verify() if "header is damaged" not in p]  # what other tools read
        if left or library.notice:
            return f"{what}: after repair: {left[:2]} {library.notice}"
        kept = held(library)
        texts, known = {t for own in kept.values() for t in own}, {t for own in STATE.values() for t in own}
        if not texts <= known:
            return f"{what}: repair made up {sorted(texts - known)[:2]}"
        whole = texts == known and kept.keys() == STATE.keys()
        if whole == bool(report.lost):
            return f"{what}: lost {report.lost}, held {sorted(kept)}"
        if whole:
            check(library, STATE)
    return None


def _repaired(path: Path, copy: Path | None) -> RepairReport:
    def remake(head: Any, compress: Sequence[Passage], embed: Sequence[Passage]) -> Remade:
        pairs = [(p.id, memory_of(p.id)) for p in compress]
        return Remade(made.write(path, get_codec(head.codec), pairs), {p.id: vector_of(p.id) for p in embed})

    return repair(path, remake, copy)


# -- an adapter, a model, an embedder ----------------------------------------------------------------------


def _answer(place: Path) -> tuple[str, float, tuple[str, ...]]:
    small.forget_models()
    with SacRag.open(place / "a.lib", dtype="float32") as rag:
        answer = rag.ask("Which field holds the stones of the ridge?", k=2, max_new_tokens=6)
        return answer.text, answer.confidence, tuple(h.passage.id for h in answer.sources)


def _judge_model(place: Path, folders: list[Path], rng: random.Random, expected: object) -> str | None:
    for folder in folders:
        shutil.rmtree(folder)
        shutil.copytree(place / "kept" / folder.name, folder)
    path = rng.choice([p for folder in folders for p in sorted(folder.rglob("*")) if p.is_file()])
    change(path, rng)
    try:
        found = _answer(place)
    except SacError:
        return None
    finally:
        kept = place / "kept" / path.relative_to(place / "models")
        changed = path.read_bytes()
        shutil.copy(kept, path)
    if found != expected:
        return (
            f"{path.relative_to(place / 'models')}: another answer: {found} {_difference(kept.read_bytes(), changed)}"
        )
    return None


def _difference(before: bytes, after: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    return f"at {at}: {before[max(0, at - 30) : at + 30]!r} is {after[max(0, at - 30) : at + 30]!r}"


# -- a configuration ---------------------------------------------------------------------------------------


def _judge_config(work: Path, rng: random.Random) -> str | None:
    text = TOML.encode()
    for _ in range(rng.choice((1, 1, 3))):
        text = mutate(text, rng)
    if rng.random() < 0.5:
        lines = TOML.splitlines()
        at = rng.choice([i for i, line in enumerate(lines) if "=" in line])
        lines[at] = lines[at].split("=")[0] + "= " + json.dumps(rng.choice(ODD))
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
    (work / "sac.toml").write_bytes(text)
    with small.settings({}, work):
        code, _, err = small.sac(["ls"])
    if small.is_untyped(err) or code not in (0, 1, 2, 3):
        return f"sac.toml {text!r}: {code} {err[-300:]}"
    return None
