"""Child processes that serve a function: a request a line of JSON, and events, a line of JSON each, back.

A child has one thread to compute with, hears no Ctrl-C, and ends with its standard input, whatever it is doing: a
parent that stops or dies leaves none behind. Nothing is pickled. This file knows nothing of what is computed.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sac_rag import errors
from sac_rag.errors import SacError

Tell = Callable[..., None]
"""Sends an event: its keyword arguments, which are JSON values."""

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sac_rag.processes import main; main()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
_STOP_SECONDS = 5.0


class Child:
    """One child process. Its events come to a queue as (child, event), and (child, None) when it has ended."""

    def __init__(
        self, target: str, setup: Mapping[str, Any], events: queue.SimpleQueue[tuple[Child, dict[str, Any] | None]]
    ) -> None:
        """target: "module:function" of `function(setup, requests, tell)`, which serves requests until there are no
        more. setup: JSON values that all requests share."""
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps([os.path.abspath(p) for p in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, which stops its children
        )
        threading.Thread(target=self._hear, args=(events,), daemon=True).start()
        self.send({"target": target, "setup": setup})

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, request: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except OSError:  # it died, as its last event will say
            pass

    def stop(self) -> int:
        """End it at once; its exit code."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
            return self._child.wait(_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
            return self._child.wait()

    def _hear(self, events: queue.SimpleQueue[tuple[Child, dict[str, Any] | None]]) -> None:
        assert self._child.stdout is not None
        with self._child.stdout as lines:
            for line in lines:
                events.put((self, json.loads(line)))
        events.put((self, None))


class ChildTraceback(Exception):
    """What an error looked like in the child that raised it; shown as the cause."""


def raise_error(event: Mapping[str, Any], doing: str) -> None:
    """Raise what a child raised, if the event tells of an error: as it was there if it is one of ours, else SacError.

    doing: what the child was at, for a message of its own.
    """
    if "error" in event:
        known = errors.known(event["error"], event["message"])
        error = known or SacError(f"{doing} failed: {event['error']}: {event['message']}")
        raise error from ChildTraceback(event["traceback"])


def main() -> None:
    """The whole life of a child."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_feed, args=(lines,), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event of ours

    def tell(**event: Any) -> None:
        out.write(json.dumps(event) + "\n")
        out.flush()

    try:
        first = json.loads(lines.get())
        module, _, function = first["target"].partition(":")
        getattr(importlib.import_module(module), function)(first["setup"], _requests(lines), tell)
    except BaseException as error:
        tell(error=type(error).__name__, message=str(error), traceback=traceback.format_exc())
        os._exit(1)


def _requests(lines: queue.SimpleQueue[str]) -> Iterator[dict[str, Any]]:
    while True:
        yield json.loads(lines.get())


def _feed(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # what a child stores, it stores whole or not at all
