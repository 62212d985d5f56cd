"""A forked child under strace: its system calls in a log, or one of them met with SIGKILL before it takes place.

strace's `inject=CALL:signal=KILL:when=N` delivers the signal when the process enters the call, so the call never
happens: what is on disk is what all calls before it made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

MUTATING = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("ftruncate", "truncate", "mkdir", "fchmod", "chmod", "fallocate", "copy_file_range", "sendfile"),
)
"""System calls that may change a file; of openat those that create one."""


def fork(body: Callable[[], None]) -> int:
    """Process id of a child that runs `body` and ends: 0, or 9 where it raised."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _alone()
            body()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(9)
    return pid


def _alone() -> None:
    """Compute in one thread: those of OpenMP did not come along, and would be waited for."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def is_there() -> bool:
    """Whether strace is installed."""
    return shutil.which("strace") is not None


def traced(log: Path, job: Callable[[int], None], *options: str, calls: Sequence[str] = MUTATING) -> tuple[int, bytes]:
    """Run a job, which is given a pipe, in a forked child with strace attached; (wait status, what it said).

    Raises PermissionError where strace may not attach.
    """
    read_end, write_end = os.pipe()
    go_read, go_write = os.pipe()

    def body() -> None:
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER: any
        os.read(go_read, 1)
        job(write_end)

    pid = fork(body)
    os.close(write_end)
    command = ["strace", "-f", "-p", str(pid), "-o", str(log), "-e", f"trace={','.join('?' + c for c in calls)}"]
    tracer = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tracer.wait()
        for fd in (read_end, go_read, go_write):
            os.close(fd)
        tracer.stderr.close()
        raise PermissionError(line.strip())
    os.write(go_write, b"x")
    said = b""
    while part := os.read(read_end, 1 << 16):
        said += part
    _, status = os.waitpid(pid, 0)
    tracer.wait()
    for fd in (read_end, go_read, go_write):
        os.close(fd)
    with contextlib.suppress(OSError):
        tracer.stderr.close()
    return status, said


def points_of(log: Path, within: Path | None = None) -> list[tuple[str, int]]:
    """Mutating system calls of a traced run, as strace counts them: the nth openat, the nth write … of a process.

    within: only those that name a path in this folder, for which the run is to be traced with `-y`.
    """
    counts: Counter[tuple[str, str]] = Counter()
    points: dict[tuple[str, int], None] = {}
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match and match[2] in MUTATING:
            counts[match[1], match[2]] += 1
            here = within is None or str(within) in line
            if here and (match[2] != "openat" or "O_CREAT" in line):
                points[match[2], counts[match[1], match[2]]] = None
    return list(points)
