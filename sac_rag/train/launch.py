"""Processes of this machine that train as one: how many, started, listened to and ended together.

Imports nothing heavy. The processes themselves meet in `train/team.py`, as those that `torchrun` starts do.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from sac_rag import errors
from sac_rag.errors import ConfigError, SacError, TrainingError

T = TypeVar("T")

POLL_SECONDS = 0.2
"""How soon a request to stop is passed on."""
GRACE_SECONDS = 3.0
"""Others have so long to say what went wrong once one process failed: the first cry may be about a lost connection."""
END_SECONDS = 10.0
"""Time for a process to end by itself before it is ended."""


def world() -> int:
    """Processes that `torchrun` or its like started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process speaks for all that train with it."""
    return world() == 1 or os.environ.get("RANK", "0") == "0"


def cores() -> int:
    """Physical cores that this process may use; hardware threads where the system does not tell them apart."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # macOS
        return os.cpu_count() or 1
    siblings = set()
    for cpu in usable:
        try:
            siblings.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)


def processes_for(asked: int | None, parts: int, device: str) -> int:
    """How many processes to start for steps of `parts` micro-batches, 1 meaning none beside this one.

    asked: None is one a physical core on a CPU, as far as there are micro-batches, and one on a GPU or where torchrun
    started some. Raises ConfigError for a number that cannot be.
    """
    from sac_rag.models.loading import choose_device

    if asked is not None and asked < 1:
        raise ConfigError(f"--processes is {asked}; use 1 or more")
    if world() > 1:
        if asked not in (None, world()):
            raise ConfigError(f"--processes is {asked}, but {world()} were started already (WORLD_SIZE): leave it out")
        return 1
    if choose_device(device).type != "cpu":
        if asked not in (None, 1):
            raise ConfigError(
                f"--processes is {asked}, which is for CPUs: use --device cpu, or torchrun with a process for each GPU"
            )
        return 1
    if asked is None:
        return min(cores(), parts)
    if asked > parts:
        raise ConfigError(
            f"--processes is {asked}, but a step has {parts} micro-batches: give each process at least one"
        )
    return asked


def together(
    function: Callable[..., T],
    processes: int,
    *args: Any,
    listen: Callable[..., None] | None = None,
    stop: Callable[[], bool] | None = None,
    **kwargs: Any,
) -> T:
    """`function(*args, listen=listen, stop=stop, **kwargs)`, computed by so many processes; what the leader returns.

    function: `run` or `follow`, or another module-level function whose arguments and result can be pickled. Its
    processes have one thread each and do not hear Ctrl-C: `listen` and `stop` are called here. Whatever ends this
    process ends them. Raises what went wrong in one of them, TrainingError when one was killed.
    """
    if processes == 1:
        return function(*args, listen=listen, stop=stop, **kwargs)
    with _started(function, processes, args, kwargs) as pipes:
        return _result(pipes, listen, stop)


def _result(pipes: Sequence[Connection], listen: Callable[..., None] | None, stop: Callable[[], bool] | None) -> Any:
    """What the first of them sends as its result, listening to all meanwhile."""
    left = dict(zip(pipes, range(len(pipes)), strict=True))
    failures: list[tuple[bool, SacError]] = []
    until, told = float("inf"), False
    while left and time.monotonic() < until:
        for ready in wait(list(left), POLL_SECONDS):
            assert isinstance(ready, Connection)
            kind, value = _heard(ready, left[ready], len(pipes))
            if kind == "heard":
                if listen:
                    listen(*value)
                continue
            if kind == "made" and left[ready] == 0:
                return value
            if kind == "failed":
                failures.append(_error(*value))
                until = min(until, time.monotonic() + GRACE_SECONDS)
            del left[ready]
        if not told and stop and stop() and pipes[0] in left:
            with suppress(OSError):  # it has just ended, which the next round hears
                pipes[0].send("stop")
            told = True
    # An error of ours before that of a connection, which is often only its echo; the first of its kind.
    raise min(failures, key=lambda failure: failure[0])[1]


def _heard(pipe: Connection, rank: int, processes: int) -> tuple[str, Any]:
    try:
        kind, value = pipe.recv()
    except (EOFError, OSError):
        message = (
            f"process {rank + 1} of {processes} was ended from outside, for instance because memory ran out: the same "
            "command goes on from the last checkpoint, and fewer --processes need less memory"
        )
        return "failed", (TrainingError.__name__, message, "")
    return kind, value


@contextmanager
def _started(
    function: Callable[..., Any], processes: int, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[list[Connection]]:
    """The processes at work, and a pipe to each; none is left at the end."""
    context = multiprocessing.get_context("spawn")
    team = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "GLOO_SOCKET_IFNAME": next(name for _, name in socket.if_nameindex() if name.startswith("lo")),
    }
    pipes: list[Connection] = []
    started: list[SpawnProcess] = []
    try:
        for rank in range(processes):
            mine, theirs = context.Pipe()
            pipes.append(mine)
            own = {**team, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(
                target=_take_part, args=(theirs, own, function, args, kwargs), name=f"train-{rank}", daemon=True
            )
            with _inherited():
                process.start()
            started.append(process)
            theirs.close()  # so that a pipe ends with its process
        yield pipes
        for process in started:
            process.join(END_SECONDS)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.join(END_SECONDS)
            process.kill()
        for pipe in pipes:
            pipe.close()


@contextmanager
def _inherited() -> Iterator[None]:
    """What a process has from its birth: Ctrl-C blocked, which this process will see to, and one thread."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in threads}
    resource_tracker.ensure_running()  # it comes with the first process, and its start lets Ctrl-C through
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(threads)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _take_part(
    pipe: Connection,
    team: Mapping[str, str],
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> None:
    """The whole life of one process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(team)
    if not leads():  # what it has to say it says through the pipe
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, sys.stdout.fileno())
        os.dup2(quiet, sys.stderr.fileno())

    def listen(*heard: Any) -> None:
        pipe.send(("heard", heard))

    try:
        made = function(*args, listen=listen, stop=pipe.poll if leads() else None, **kwargs)
    except Exception as error:
        said = "".join(traceback.format_exception(error))
        pipe.send(("failed", (type(error).__name__, str(error), said)))
    else:
        pipe.send(("made", made))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _error(name: str, message: str, said: str) -> tuple[bool, SacError]:
    """What went wrong in a process, as it would have been raised here, its traceback a note; whether it is foreign."""
    known = errors.known(name, message)
    error = known or TrainingError(f"{name}: {message}")
    if said:
        error.add_note(said)
    return known is None, error
