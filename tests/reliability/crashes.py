"""The states that a disk may be left in by a power cut, out of a recorded run.

A run's system calls are replayed over a model of a folder: an inode has bytes that are durable and changes that are
not; the folder has names that are durable and changes that are not. `fsync` of a file makes its changes durable, and
of the folder its names. After a cut, names are as after any prefix of what was pending (file systems keep their order),
and a file has any prefix of its pending changes, or all but one, or one alone, or the last one torn, or its new length
with zeros in it: writes reach a disk in any order, and not always whole.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("ftruncate", "lseek", "close"),
)
OPTIONS = ("-y", "-xx", "-s", "100000000")
"""Of strace, so that the log holds paths and bytes whole."""
MOST_PRODUCTS = 400
"""Where several files are pending at once, combinations of so many of their states."""

Disk = dict[str, bytes]
"""What a folder holds, by name."""


@dataclass
class Call:
    """One system call on the folder, or words on a pipe (`said`)."""

    kind: str
    name: str = ""
    other: str = ""
    data: bytes = b""
    at: int = 0
    said: bytes = b""


@dataclass(eq=False)
class _File:
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes), or (length, None) for a truncation."""

    def now(self) -> bytes:
        return _applied(self.durable, self.pending)

    def states(self) -> list[bytes]:
        """Distinct contents after a cut."""
        p = self.pending
        out = {_applied(self.durable, p[:n]): None for n in range(len(p) + 1)}
        for n, (at, data) in enumerate(p):
            out[_applied(self.durable, p[:n] + p[n + 1 :])] = None
            out[_applied(self.durable, [p[n]])] = None
            if data:
                half = len(data) // 2
                out[_applied(self.durable, [*p[:n], (at, data[:half])])] = None
                out[_applied(self.durable, [*p[:n], (at + half, data[half:])])] = None
        if len(full := self.now()) > len(self.durable):
            out[self.durable + bytes(len(full) - len(self.durable))] = None
        return list(out)


def _applied(content: bytes, changes: list[tuple[int, bytes | None]]) -> bytes:
    raw = bytearray(content)
    for at, data in changes:
        if data is None:
            raw[at:] = bytes(max(0, at - len(raw)))
        else:
            raw.extend(bytes(max(0, at - len(raw))))
            raw[at : at + len(data)] = data
    return bytes(raw)


def read_log(log: Path, folder: Path, pipe: str = "pipe:") -> list[Call]:
    """The calls of a traced run that touch `folder`, and what it said on its pipe, in order. Of one thread."""
    calls: list[Call] = []
    offsets: dict[str, int] = {}
    prefix = f"{folder}/"
    for raw in log.read_text().splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\((.*)\) = (-?\d+)(?:<(.*)>)?", raw)
        if not match:
            continue
        kind, arguments, result, target = match.groups()
        if int(result) < 0:
            continue
        paths = [_text(p) for p in re.findall(r"<((?:\\x[0-9a-f]{2})*)>", arguments)]
        strings = [bytes.fromhex(s.replace("\\x", "")) for s in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]
        here = paths[0] if paths else ""
        if kind == "openat":
            path, fd = _text(target or ""), result
            offsets[fd] = 0
            if path.startswith(prefix):
                if "O_CREAT" in arguments:
                    calls.append(Call("create", path.removeprefix(prefix)))
                if "O_TRUNC" in arguments:
                    calls.append(Call("truncate", path.removeprefix(prefix)))
            continue
        fd = arguments.split("<")[0].split(",")[0].strip()
        if kind == "close":
            continue
        if kind == "lseek":
            offsets[fd] = int(result)
        elif kind in ("write", "pwrite64"):
            data = strings[0][: int(result)] if strings else b""
            at = int(arguments.rsplit(",", 1)[1]) if kind == "pwrite64" else offsets.get(fd, 0)
            if kind == "write":
                offsets[fd] = at + len(data)
            if here.startswith(prefix):
                calls.append(Call("write", here.removeprefix(prefix), data=data, at=at))
            elif here.startswith(pipe):
                calls.append(Call("say", said=data))
        elif kind in ("fsync", "fdatasync"):
            if here == str(folder):
                calls.append(Call("sync names"))
            elif here.startswith(prefix):
                calls.append(Call("sync", here.removeprefix(prefix)))
        elif kind == "ftruncate":
            if here.startswith(prefix):
                calls.append(Call("truncate", here.removeprefix(prefix), at=int(arguments.rsplit(",", 1)[1])))
        elif kind.startswith(("rename", "unlink")):
            names = [s.decode() for s in strings]
            if names and names[0].startswith(prefix):
                other = names[1].removeprefix(prefix) if len(names) > 1 else ""
                calls.append(Call(kind[:6], names[0].removeprefix(prefix), other))
    return calls


def _text(escaped: str) -> str:
    return bytes.fromhex(escaped.replace("\\x", "")).decode(errors="replace")


def states(before: Disk, calls: list[Call]) -> Iterator[tuple[bytes, Disk]]:
    """(what had been said, what the folder holds) after a cut behind each call. Of equal ones the last, when most had
    been said: what a disk may hold after an acknowledgement must satisfy it."""
    last = {_key(disk): n for n, (_, disk) in enumerate(_all_states(before, calls))}
    for n, (said, disk) in enumerate(_all_states(before, calls)):
        if last[_key(disk)] == n:
            yield said, disk


def _key(disk: Disk) -> int:
    return hash(tuple(sorted(disk.items())))


def _all_states(
    before: Disk, calls: list[Call], ignore: tuple[str, ...] = ("writer.lock",)
) -> Iterator[tuple[bytes, Disk]]:
    names: dict[str, _File] = {name: _File(content) for name, content in before.items()}
    durable = dict(names)
    pending: list[tuple[str, str, str, _File | None]] = []
    said = b""
    for call in [Call("begin"), *calls]:
        if call.name in ignore:
            continue
        if call.kind == "say":
            said += call.said
        elif call.kind == "create":
            if call.name not in names:
                names[call.name] = _File()
                pending.append(("create", call.name, "", names[call.name]))
        elif call.kind == "write":
            if call.name in names:
                names[call.name].pending.append((call.at, call.data))
        elif call.kind == "truncate":
            if call.name in names:
                names[call.name].pending.append((call.at, None))
        elif call.kind == "sync":
            file = names[call.name]
            file.durable, file.pending = file.now(), []
        elif call.kind == "rename":
            names[call.other] = names.pop(call.name)
            pending.append(("rename", call.name, call.other, None))
        elif call.kind == "unlink":
            names.pop(call.name)
            pending.append(("unlink", call.name, "", None))
        elif call.kind == "sync names":
            durable, pending = dict(names), []
        if call.kind in ("create", "rename", "unlink", "write", "truncate", "say", "begin"):
            for disk in _after_cut(durable, pending):
                yield said, disk


def _after_cut(durable: dict[str, _File], pending: list[tuple[str, str, str, _File | None]]) -> Iterator[Disk]:
    for upto in range(len(pending) + 1):
        names = dict(durable)
        for kind, name, other, file in pending[:upto]:
            if kind == "create" and file is not None:
                names[name] = file
            elif kind == "rename" and name in names:
                names[other] = names.pop(name)
            elif kind == "unlink":
                names.pop(name, None)
        torn = [n for n, f in names.items() if f.pending]
        fixed = {n: f.durable for n, f in names.items() if not f.pending}
        choices = [names[n].states() for n in torn]
        for combination in itertools.islice(_combined(choices), MOST_PRODUCTS):
            yield {**fixed, **dict(zip(torn, combination, strict=True))}


def _combined(choices: list[list[bytes]]) -> Iterator[tuple[bytes, ...]]:
    """The product; those in which all files but one are without their changes, or have all, first."""
    firsts = [c[0] for c in choices]
    for i, own in enumerate(choices):
        for state in own:
            yield (*firsts[:i], state, *firsts[i + 1 :])
    yield from itertools.product(*choices)
