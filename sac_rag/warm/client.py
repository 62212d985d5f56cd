"""Asking a warm process, or this one where that does not answer. No model is imported for it."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sac_rag import errors
from sac_rag.config import AskConfig
from sac_rag.errors import SacError
from sac_rag.foreign import parse_object
from sac_rag.places import places_of
from sac_rag.records import Answer, Evidence, Hit, Passage, Timings, Usage
from sac_rag.warm.place import connect, is_mine, peer_pid, socket_of

if TYPE_CHECKING:
    from sac_rag.answer.stream import Stream
    from sac_rag.pipeline import SacRag

REACHED_S = 2.0
"""Seconds in which a warm process says that it has heard."""
ANSWERED_S = 600.0
ENDED_S = 60.0
"""Seconds that a warm process has to end before it is killed."""
LINE_BYTES = 64 << 20

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sac_rag.warm.server import main; main(sys.argv[2])"
)


class Warm:
    """What `sac ask` asks: `ask` and `stream` as of `SacRag`, by a warm process as long as that answers."""

    def __init__(self, path: Path, cold: Callable[[], SacRag], told: Callable[[str], None] = lambda line: None) -> None:
        """path: the socket. cold: opens the library in this process, at the first question that needs it. told: hears
        who answers."""
        self._path, self._open, self._told = path, cold, told
        self._cold: SacRag | None = None

    @classmethod
    def at(
        cls,
        library: str,
        device: str,
        dtype: str,
        cold: Callable[[], SacRag],
        told: Callable[[str], None] = lambda line: None,
    ) -> Warm | None:
        """One for a library that a process of this user serves; None where there is none, for whatever reason."""
        try:
            path = socket_of(library, device, dtype)
        except (OSError, SacError):
            return None
        connection = connect(path, REACHED_S)
        if connection is None:
            return None
        connection.close()
        return cls(path, cold, told)

    def ask(
        self,
        question: str,
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        text: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> Answer:
        stream = self.stream(question, ask, where=where, text=text, schema=schema)
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        question: str,
        ask: AskConfig | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        text: bool = False,
        schema: Mapping[str, Any] | None = None,
    ) -> Heard | Stream:
        """As of `SacRag`. What a warm process refuses, or does not live to begin, this process answers, and what is
        reranked by a folder: its path is read from here, and the warm process may hold what was in it before."""
        own = ask is not None and ask.rerank is not None and Path(ask.rerank).expanduser().is_dir()
        request = {
            "question": question,
            "ask": dataclasses.asdict(ask or AskConfig()),
            "where": where,
            "text": text,
            "schema": schema,
        }
        if self._cold is None:
            heard = None if own else _begun(self._path, request)
            if heard is not None:
                self._told(f"answered by the warm process {heard.pid}")
                return heard
            self._cold = self._open()
        self._told("answered by this process")
        return self._cold.stream(question, ask, where=where, text=text, schema=schema)


class Heard(Iterator[str]):
    """The pieces of an answer that a warm process makes; `answer` when they are over."""

    def __init__(self, connection: socket.socket, lines: Any, pid: int, first: dict[str, Any]) -> None:
        self.pid = pid
        self._connection, self._lines, self._next = connection, lines, first
        self._answer: Answer | None = None

    def __next__(self) -> str:
        if self._answer is not None:
            raise StopIteration
        event, self._next = self._next or _event(self._lines), {}
        if event is None:
            self._connection.close()
            raise SacError(f"the warm process {self.pid} ended before its answer did: ask again")
        if "piece" in event:
            return str(event["piece"])
        self._connection.close()
        if "error" in event:
            message = str(event.get("message", "it does not say why"))
            raise errors.known(str(event["error"]), message) or SacError(message)
        try:
            self._answer = answer_of(event["answer"])
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise SacError(
                f"the warm process {self.pid} gives no answer of this version: ask again with --no-warm"
            ) from problem
        raise StopIteration

    @property
    def answer(self) -> Answer:
        if self._answer is None:
            raise RuntimeError("the answer is not complete: read the stream to its end first")
        return self._answer


def _begun(path: Path, request: Mapping[str, Any]) -> Heard | None:
    """An answer whose first piece has come; None where a warm process does not answer."""
    connection = connect(path, REACHED_S)
    if connection is None:
        return None
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        lines = connection.makefile("rb")
        met = _event(lines)
        connection.settimeout(ANSWERED_S)
        first = _event(lines) if met and "pid" in met else None
        if met is not None and first is not None and {"piece", "answer", "error"} & set(first):
            return Heard(connection, lines, int(met["pid"]), first)
    except (OSError, TypeError, ValueError):
        pass
    connection.close()
    return None


def _event(lines: Any) -> dict[str, Any] | None:
    """The next line of a warm process; None where it has ended."""
    try:
        line = lines.readline(LINE_BYTES)
        return parse_object(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None


def answer_of(told: Mapping[str, Any]) -> Answer:
    """The Answer that `dataclasses.asdict` made this of, by way of JSON."""
    hits = tuple(Hit(**{**hit, "passage": Passage(**hit["passage"])}) for hit in told["sources"])
    parts = {"sources": hits, "usage": Usage(**told["usage"]), "timings": Timings(**told["timings"])}
    parts["evidence"] = tuple(Evidence(**sentence) for sentence in told["evidence"])
    return Answer(**{**told, **parts, "notices": tuple(told["notices"])})


def start(library: str, device: str, dtype: str, idle_s: float) -> int:
    """Start a warm process for a library, apart from this one, and wait until it answers; its process id.

    Raises what opening the library raises, ConfigError where sockets cannot be private, SacError where it ends early.
    """
    path = socket_of(library, device, dtype, make=True)
    absolute = [os.path.abspath(folder) for folder in places_of(library)]
    setup = {"path": str(path), "library": absolute, "device": device, "dtype": dtype, "idle_s": idle_s}
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(p) for p in sys.path]), json.dumps(setup)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # it outlives the terminal
        cwd="/",
    )
    assert child.stdout is not None
    with child.stdout as lines:
        event = _event(lines)
    if event is None:
        raise SacError(f"the warm process ended (exit code {child.wait()}) before it could answer")
    if "error" in event:
        child.wait()
        raise errors.known(str(event["error"]), str(event["message"])) or SacError(str(event["message"]))
    return int(event["pid"])


def stop(library: str, device: str, dtype: str) -> Literal["none", "ended", "killed"]:
    """End the warm process of a library, and say what that took: one that does not answer, or does not end within
    ENDED_S, is killed.

    Raises ConfigError as `socket_of`, and SacError where the process goes on all the same.
    """
    try:
        path = socket_of(library, device, dtype)
    except OSError:
        return "none"
    connection = connect(path, REACHED_S)
    if connection is None:
        if _is_full(path):
            raise SacError(
                f"the warm process at {path} hangs, and too many wait for it: end it by its number (ss -xlp)"
            )
        return "none"
    with connection:
        pid = peer_pid(connection)
        process = None if pid == os.getpid() else _process(pid)
        try:
            connection.sendall(b'{"stop": true}\n')
            heard = _event(connection.makefile("rb")) is not None
        except OSError:
            heard = False
    if process is None:
        return "ended"
    try:
        if _has_ended(process, ENDED_S if heard else 0.0):
            return "ended"
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if not _has_ended(process, ENDED_S):
            raise SacError(f"the warm process {pid} goes on though it was killed: the system is at something for it")
    finally:
        os.close(process)
    left = connect(path, REACHED_S)  # another may have taken its place
    if left is None:
        path.unlink(missing_ok=True)
    else:
        left.close()
    return "killed"


def _process(pid: int) -> int | None:
    """A file descriptor of a process, by which no other is meant that gets its number; None where it has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as problem:
        raise SacError(
            f"the warm process {pid} cannot be ended from here ({problem.strerror}): kill {pid}"
        ) from problem


def _has_ended(process: int, seconds: float) -> bool:
    return bool(select.select([process], [], [], seconds)[0])


def _is_full(path: Path) -> bool:
    """Whether somebody listens at a socket and takes no more connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return is_mine(path)
        except OSError:
            return False
    return False
