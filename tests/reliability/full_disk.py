"""Commands on a file system with too little room, 4 KB more at each step until they succeed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.reliability import kills
from tests.reliability.parts import Found
from tests.reliability.small import contents, is_untyped, sac, settings

STEP = 4096
MOUNT_BYTES = 4 << 20
COMMANDS = ("index", "rm", "gc", "repair")
ENOUGH = 2
"""Successes in a row after which more room is no news."""
SHORT = 12
"""A short piece takes one step in so many."""


def piece(place: Path, number: int, short: bool) -> Found:
    found = Found()
    command = next(c for c in kills.COMMANDS if c.name == COMMANDS[number % len(COMMANDS)])
    work = place / "work"
    work.mkdir()
    values = kills.make(work)
    kept, library = place / "kept", work / "my.lib"
    with settings(values, work):
        code, err = kills.in_child(lambda: command.prepare(work) or (0, "", ""))
        assert code == 0, err
        damaged = command.name == "repair"
        shutil.copytree(library, kept)
        before = {} if damaged else contents(library)[1]
        code, err = kills.in_child(lambda: sac(command.args))
        assert code == 0, err
        after = contents(library)[1]
        with _small_file_system(library, found) as limited:
            done = step = 0
            while done < ENOUGH:
                _again(library, kept)
                code, err = kills.in_child(lambda free=step * STEP: limited(free, lambda: sac(command.args)))  # type: ignore[misc]
                found.counts["steps"] += 1
                what = f"{command.name} with room for {step * STEP:,} bytes"
                if code == 0:
                    done += 1
                else:
                    done = 0
                    found.counts["full"] += 1
                    found.check(
                        "no room left" in err and not is_untyped(err), f"{what}: ends with {code}: {err[-300:]}"
                    )
                    (library / "filler").unlink(missing_ok=True)
                    _judge(found, what, library, before, after, damaged)
                    code, err = kills.in_child(lambda: sac(command.args))
                    found.check(code in command.repeatable, f"{what}, then with room: {code}: {err[-300:]}")
                (library / "filler").unlink(missing_ok=True)
                try:
                    found.check(contents(library)[1] == after, f"{what}, then with room: another state")
                except Exception as error:
                    found.bad.append(f"{what}, then with room: {type(error).__name__}: {error}")
                step += SHORT if short else 1
    found.check(found.counts["full"] > 0, f"{command.name} never met a full disk")
    found.counts["commands"] += 1
    return found


def _judge(found: Found, what: str, library: Path, before: kills.State, after: kills.State, damaged: bool) -> None:
    if damaged:  # what was damaged before may be so still: the command is to go on from here
        return
    try:
        _, now = contents(library)
    except Exception as error:
        found.bad.append(f"{what}: {type(error).__name__}: {error}")
        return
    for uri in {*before, *after, *now}:
        mine = now.get(uri)
        found.check(mine in (before.get(uri), after.get(uri)), f"{what}: {uri} is neither as before nor as after")


def _again(library: Path, kept: Path) -> None:
    for name in os.listdir(library):
        (library / name).unlink()
    shutil.copytree(kept, library, dirs_exist_ok=True)


Limited = Callable[[int, Callable[[], tuple[int, str, str]]], tuple[int, str, str]]
"""(bytes of room, job) -> what the job gives, done with so little room."""


@contextlib.contextmanager
def _small_file_system(library: Path, found: Found) -> Iterator[Limited]:
    """The library's folder as a file system of its own, where one may be mounted; else a limit on lengths of files."""
    shutil.rmtree(library)
    library.mkdir(mode=0o700)
    options = ["-t", "tmpfs", "-o", f"size={MOUNT_BYTES},mode=0700", "tmpfs", str(library)]
    mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    found.counts["mounted" if mounted else "by_length"] += 1
    try:
        yield _filled(library) if mounted else _by_length
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(library)], check=False)


def _filled(library: Path) -> Limited:
    def limited(free: int, job: Callable[[], tuple[int, str, str]]) -> tuple[int, str, str]:
        room = os.statvfs(library)
        (library / "filler").write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - free)))
        return job()

    return limited


def _by_length(free: int, job: Callable[[], tuple[int, str, str]]) -> tuple[int, str, str]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, before[1]))
    try:
        return job()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
