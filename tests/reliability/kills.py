"""Whole commands, killed before a system call; what is left is whole, and the same command goes on."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.reliability.parts import CannotRun, Found
from tests.reliability.small import contents, forget_models, models, sac, sentences, settings
from tests.reliability.tracing import fork, is_there, points_of, traced

State = dict[str, tuple[str, ...]]
SHARES, SHORT = 4, 40
"""A piece takes one system call in so many. When all have been taken, the library is one of four documents more."""


@dataclass(frozen=True)
class Command:
    """name, arguments of `sac`; prepare: what is done to the folder before it."""

    name: str
    args: tuple[str, ...]
    prepare: Callable[[Path], None] = lambda folder: None
    repeatable: tuple[int, ...] = (0,)
    """Exit codes of the same command where it had been done already."""


def _change(folder: Path) -> None:
    docs = folder / "docs"
    (docs / "a.txt").write_text(sentences("new a", 6))
    (docs / "b.txt").unlink()
    (docs / "e.txt").write_text(sentences("e", 5))


def _add(folder: Path) -> None:
    (folder / "extra.txt").write_text(sentences("extra", 9))


def _gone(folder: Path) -> None:
    assert sac(["rm", "docs/a.txt", "docs/c.txt"])[0] == 0


def _damage(folder: Path) -> None:
    """A segment is lost, and a passage's row; a copy of the catalog has the row."""
    import sqlite3

    library = folder / "my.lib"
    shutil.copy(library / "catalog.sqlite", folder / "copy.sqlite")
    (library / "seg-1.safetensors").unlink()
    with contextlib.closing(sqlite3.connect(library / "catalog.sqlite")) as db, db:
        db.execute("UPDATE passages SET text = 'other' WHERE key = (SELECT max(key) FROM passages)")


COMMANDS = (
    Command("index", ("index", "docs", "--sync", "-q"), _change),
    Command("add", ("add", "extra.txt", "-q"), _add),
    Command("rm", ("rm", "docs/b.txt", "-q"), repeatable=(0, 1)),
    Command("gc", ("gc", "-q"), _gone),
    Command("recode", ("recode", "int8", "-q"), repeatable=(0, 1)),
    Command("repair", ("repair", "--copy", "copy.sqlite", "-q"), _damage),
)
NAMES = (*(c.name for c in COMMANDS), "adapter")


def make(folder: Path, documents: str = "abcd") -> dict[str, str]:
    """Models, documents and their library in a folder; the environment in which `sac` uses them.

    All that a command imports is imported here, so that forked children need not.
    """
    toys = models(folder / "models")
    (folder / "docs").mkdir()
    for name in documents:
        (folder / "docs" / f"{name}.txt").write_text(sentences(name, 5))
    values = {**toys.environment, "SAC_LIBRARY": "my.lib", "SAC_CACHE": str(folder / "models" / "cache")}
    with settings(values, folder):
        for name in documents:  # a segment each
            code, _, err = sac(["index", f"docs/{name}.txt", "-q"])
            assert code == 0, err
    forget_models()
    return values


def in_child(job: Callable[[], tuple[int, str, str]]) -> tuple[int, str]:
    """(exit code, standard error) of a command in a forked child: models that it loads are gone with it."""
    read, write = os.pipe()

    def body() -> None:
        code, _, err = job()
        os.write(write, json.dumps([code, err[-4000:]]).encode())

    pid = fork(body)
    os.close(write)
    said = b""
    while part := os.read(read, 1 << 16):
        said += part
    os.close(read)
    os.waitpid(pid, 0)
    code, err = json.loads(said or b'[99, "the process died"]')
    return code, err


def reporting(args: tuple[str, ...], pipe: int) -> None:
    """Run a command that says each generation it has committed."""
    from sac_rag.library.transaction import Transaction

    commit = Transaction.commit

    @functools.wraps(commit)
    def told(self: Transaction) -> object:
        view = commit(self)
        if view is not None:
            os.write(pipe, f"{view.head.generation}\n".encode())
        return view

    Transaction.commit = told  # type: ignore[method-assign,assignment]
    code, _, _ = sac(args)
    os._exit(code)


def piece(place: Path, number: int, short: bool) -> Found:
    if not is_there():
        raise CannotRun("strace is not installed")
    found = Found()
    name = NAMES[number % len(NAMES)]
    found.counts["commands"] += number < len(NAMES)
    try:
        if name == "adapter":
            _adapter(place, number // len(NAMES), short, found)
        else:
            _command(place, COMMANDS[number % len(NAMES)], number // len(NAMES), short, found)
    except PermissionError as error:
        raise CannotRun(f"strace may not attach here: {error}") from error
    return found


def _command(place: Path, command: Command, share: int, short: bool, found: Found) -> None:
    work = place / "work"
    work.mkdir()
    values = make(work, "abcdfghijklmnopqrstuvwxyz"[: 4 * (1 + share // SHARES)])
    kept, library, log = place / "kept", work / "my.lib", place / "strace.log"
    with settings(values, work):
        code, err = in_child(lambda: command.prepare(work) or (0, "", ""))
        assert code == 0, err
        for name in ("my.lib", "docs"):
            shutil.copytree(work / name, kept / name)

        def again() -> None:
            for name in ("my.lib", "docs"):
                shutil.rmtree(work / name)
                shutil.copytree(kept / name, work / name)

        damaged = command.name == "repair"
        before: State = {} if damaged else contents(library)[1]
        status, _ = traced(log, lambda pipe: reporting(command.args, pipe), "-y")
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, (command.name, status)
        _, after = contents(library)
        points = points_of(log, library)
        found.counts["points"] += len(points) if not share else 0
        done: Counter[str] = Counter()
        for name, nth in points[share % SHARES :: SHORT if short else SHARES]:
            again()
            status, said = traced(
                log, lambda pipe: reporting(command.args, pipe), "-e", f"inject={name}:signal=KILL:when={nth}"
            )
            if not os.WIFSIGNALED(status):  # another run took another way, in which this call is not made
                found.counts["not_met"] += 1
                continue
            done[name] += 1
            what = f"{command.name} before {name} {nth}"
            _judge(found, what, library, command, said, before, after, damaged)
        found.counts["kills"] += sum(done.values())


def _judge(
    found: Found, what: str, library: Path, command: Command, said: bytes, before: State, after: State, damaged: bool
) -> None:
    told = [int(line) for line in said.splitlines() if line.isdigit()]
    if not damaged:
        try:
            generation, now = contents(library)
        except Exception as error:
            found.bad.append(f"{what}: {type(error).__name__}: {error}")
            return
        found.check(generation >= max(told, default=0), f"{what}: commit {told} was reported, {generation} is there")
        for uri in {*before, *after, *now}:
            here = now.get(uri)
            found.check(here in (before.get(uri), after.get(uri)), f"{what}: {uri} is neither as before nor as after")
    code, err = in_child(lambda: sac(command.args))
    found.check(code in command.repeatable, f"{what}: the same command ends with {code}: {err[-200:]}")
    try:
        _, now = contents(library)
        found.check(now == after, f"{what}: the same command ends elsewhere than an undisturbed one")
    except Exception as error:
        found.bad.append(f"{what}, repeated: {type(error).__name__}: {error}")


def _adapter(place: Path, share: int, short: bool, found: Found) -> None:
    """An adapter is saved over another: what is there then is the old one, the new one, or refused; never a mixture."""
    import torch

    from sac_rag.compress import adapter as adapters
    from sac_rag.errors import SacError
    from sac_rag.models.loading import load_base
    from sac_rag.models.sources import fingerprint_of

    toys, log = models(place / "models"), place / "strace.log"
    weights = fingerprint_of(toys.base)

    def load(folder: Path) -> tuple[object, dict[str, object]]:
        base, tokenizer = load_base(toys.base, torch.device("cpu"), torch.float32)
        method, card = adapters.load(folder, base, tokenizer, base_fingerprint=weights)
        return method, {
            "card": card,
            **{n: p.detach().float().numpy().tobytes() for n, p in method.parameters().items()},
        }

    method, old = load(toys.adapter)
    kept = shutil.copytree(toys.adapter, place / "kept")
    with torch.no_grad():
        for p in method.parameters().values():  # type: ignore[attr-defined]
            p.add_(0.25)
    card = old["card"]

    def save(pipe: int) -> None:
        adapters.save(method, card, toys.adapter)  # type: ignore[arg-type]

    status, _ = traced(log, save, "-y")
    assert status == 0, status
    _, new = load(toys.adapter)
    assert new != old
    names = [n for n in new if n != "card"]
    for name, nth in points_of(log, toys.adapter)[share % SHARES :: 8 if short else SHARES]:
        shutil.rmtree(toys.adapter)
        shutil.copytree(kept, toys.adapter)
        status, _ = traced(log, save, "-e", f"inject={name}:signal=KILL:when={nth}")
        if not os.WIFSIGNALED(status):
            found.counts["not_met"] += 1
            continue
        found.counts["kills"] += 1
        what = f"adapter before {name} {nth}"
        try:
            _, now = load(toys.adapter)
            whole = any(all(now[n] == other[n] for n in names) for other in (old, new))
            found.check(whole, f"{what}: a mixture of two adapters loads")
        except SacError:
            found.counts["adapters_refused"] += 1
        adapters.save(method, card, toys.adapter)  # type: ignore[arg-type]
        found.check(load(toys.adapter)[1] == new, f"{what}: saved again it is another")
