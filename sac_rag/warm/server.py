"""The warm process: one library with its model, answering questions of its user until it has been idle for long."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sac_rag.config import AskConfig, from_mapping
from sac_rag.errors import SacError
from sac_rag.foreign import parse_object
from sac_rag.pipeline import SacRag
from sac_rag.warm.place import connect, peer_uid

REQUEST_BYTES = 4 << 20
HEARD_S = 10.0
"""Seconds that a client has for its request, and for taking a piece of its answer."""
TICK_S = 1.0


class Server:
    """Answers questions at a socket. rag: stays the caller's to close."""

    def __init__(self, rag: SacRag, path: Path, idle_s: float) -> None:
        """Raises OSError where the socket cannot be made. It takes the place of one that was there."""
        self._rag, self._path, self._idle_s = rag, path, idle_s
        self._ended, self._active, self._used = threading.Event(), 0, time.monotonic()
        self._counting = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made = path.with_suffix(f".{os.getpid()}")
        try:
            made.unlink(missing_ok=True)  # of a process that was killed, and had this number
            # Listening before it has its name: whoever finds it is heard.
            self._listener.bind(str(made))
            os.chmod(made, 0o600)
            self._listener.listen(64)
            self._inode = os.lstat(made).st_ino
            os.replace(made, path)
        except OSError:
            self._listener.close()
            with contextlib.suppress(OSError):
                made.unlink()
            raise

    def run(self) -> None:
        """Serve until `end`, or until nobody has asked for `idle_s` seconds; the socket is gone then."""
        self._listener.settimeout(min(TICK_S, self._idle_s))
        try:
            while not self._ended.is_set():
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    with self._counting:
                        if not self._active and time.monotonic() - self._used > self._idle_s:
                            return
                    continue
                with self._counting:
                    self._active += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        finally:
            with contextlib.suppress(OSError):
                if os.lstat(self._path).st_ino == self._inode:  # another may have taken its place
                    self._path.unlink()
            self._listener.close()

    def end(self) -> None:
        """Stop serving; answers under way are cut."""
        self._ended.set()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(HEARD_S)
                if peer_uid(connection) == os.geteuid():
                    self._heard(connection)
        finally:
            with self._counting:
                self._active, self._used = self._active - 1, time.monotonic()

    def _heard(self, connection: socket.socket) -> None:
        def tell(**event: Any) -> None:
            connection.sendall(json.dumps(event).encode() + b"\n")

        with connection.makefile("rb") as lines:
            line = lines.readline(REQUEST_BYTES)
        if not line.endswith(b"\n"):  # it only looked whether somebody is here
            return
        try:
            request = parse_object(line)
            tell(pid=os.getpid())
            if request.get("stop"):
                self.end()
                return
            if not self._rag.is_current():
                self.end()
                tell(refused="model, adapter or library have changed")
                return
        except OSError:
            raise
        except Exception as problem:  # what a cold process will say better
            self.end()
            tell(refused=f"{type(problem).__name__}: {problem}")
            return
        self._answer(request, tell)

    def _answer(self, request: Mapping[str, Any], tell: Callable[..., None]) -> None:
        try:
            ask = from_mapping(AskConfig, request["ask"])
            given = {name: request[name] for name in ("where", "text", "schema")}
            stream = self._rag.stream(request["question"], ask, **given)
            for piece in stream:
                tell(piece=piece)
            tell(answer=dataclasses.asdict(stream.answer))
        except OSError:
            raise
        except SacError as problem:
            tell(error=type(problem).__name__, message=str(problem))
        except Exception as problem:
            tell(refused=f"{type(problem).__name__}: {problem}")


def main(setup: str) -> None:
    """The whole life of a process that `client.start` began: a line on standard output when it answers, or why not."""
    told = json.loads(setup)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no word to the parent

    def tell(**event: Any) -> None:
        with contextlib.suppress(OSError):
            out.write(json.dumps(event) + "\n")
            out.close()

    path = Path(told["path"])
    sweep(path.parent)
    try:
        with SacRag.open(told["library"], device=told["device"], dtype=told["dtype"]) as rag:
            with contextlib.suppress(SacError):  # what is wrong with the library is said to who asks
                rag.ask("warm", AskConfig(max_new_tokens=1))
            try:
                server = Server(rag, path, told["idle_s"])
            except OSError as problem:
                raise SacError(f"no socket can be made at {path}: {problem.strerror or problem}") from None
            tell(pid=os.getpid())
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):  # the terminal is not this process's any more
                os.dup2(quiet, stream)
            server.run()
    except SacError as problem:
        tell(error=type(problem).__name__, message=str(problem))
        sys.exit(1)


def sweep(folder: Path) -> None:
    """Remove sockets at which nobody listens any more."""
    for path in folder.glob("*.sock"):
        connection = connect(path, TICK_S)
        if connection is not None:
            connection.close()
            continue
        with contextlib.suppress(OSError):
            path.unlink()
