"""A child process for parsers, with limits on memory, processor time and wall time. Frames are JSON, never pickle."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused
from sac_rag.text.extract import Parsed
from sac_rag.text.worker import read_frame, write_frame

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sac_rag.text.worker import main; main(int(sys.argv[2]))"
)
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_SIGXCPU = 24
_MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What a reply raises that is not what a parser yields; infinities and deep nesting are JSON too."""


class ParserProcess:
    """Parses bytes in one child, started at the first job, kept for the next, replaced after a crash.

    Use as a context manager. Safe to share between threads: jobs run one after the other.
    """

    def __init__(self, config: ReadConfig | None = None) -> None:
        self.config = config or ReadConfig()
        self.started = 0
        """How many children were started so far."""
        self._child: subprocess.Popen[bytes] | None = None
        self._fresh = True
        self._lock = threading.Lock()

    def parse(self, parser: str, data: bytes) -> Parsed:
        """Text and headings of `data`, for outline parsers headings alone; raises Refused with the reason."""
        with self._lock:
            try:
                reply = self._run(parser, data)
            except BaseException:  # an interrupted job would leave its reply to the next one
                self.close()
                raise
        if reason := reply.get("reason"):
            raise Refused(str(reason)[:200])
        try:
            return _checked(reply, self.config.text_chars, len(data))
        except _MALFORMED:
            raise Refused("parser crashed") from None

    def close(self) -> None:
        """End the child. The next job starts a new one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                try:
                    if pipe:
                        pipe.close()
                except OSError:  # what was still buffered for a dead child
                    pass
            child.wait()

    def __enter__(self) -> ParserProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _run(self, parser: str, data: bytes) -> Mapping[str, Any]:
        while True:
            child = self._ready()
            fresh, self._fresh = self._fresh, False
            reply, late = self._exchange(child, parser, data)
            if reply is not None:
                if reply.get("last"):
                    self.close()
                return reply
            child.kill()  # if it still lives it broke the protocol
            code = child.wait()
            self.close()
            if late or code == -_SIGXCPU:
                return {"reason": "parsing took too long"}
            if fresh:
                return {"reason": "parser crashed"}
            # Perhaps an earlier file broke the child: this one deserves a new one.

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            paths = json.dumps([os.path.abspath(p) for p in sys.path])
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, paths, str(self.config.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
            self._fresh = True
            self.started += 1
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], parser: str, data: bytes) -> tuple[dict[str, Any] | None, bool]:
        """(reply, or None if the child died; whether the wall clock killed it)."""
        assert child.stdin is not None and child.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self.config.wall_s, expire)
        timer.daemon = True
        timer.start()
        try:
            header = {"parser": parser, "config": dataclasses.asdict(self.config)}
            write_frame(child.stdin, header, data)
            # JSON needs at most six bytes a character here, headings and page offsets the rest.
            frame = read_frame(child.stdout, 12 * self.config.text_chars + 50_000_000)
            reply = json.loads(frame[1]) if frame else None
            return (reply if isinstance(reply, dict) else None), late.is_set()
        except (OSError, *_MALFORMED):
            return None, late.is_set()
        finally:
            timer.cancel()
            if late.is_set():
                child.wait()


def _checked(reply: Mapping[str, Any], max_chars: int, data_size: int) -> Parsed:
    """The reply as Parsed, its types and bounds checked: the child read hostile bytes."""
    text, meta = reply.get("text", ""), reply.get("meta", {})
    if not isinstance(text, str) or not isinstance(meta, dict) or len(text) > max_chars:
        raise ValueError
    bound = len(text) if "text" in reply else data_size
    headings = [(int(at), int(level), str(title)) for at, level, title in reply["headings"]]
    if any(not 0 <= at <= bound for at, _, _ in headings):
        raise ValueError
    # A library takes neither NaN nor lone surrogates: here they cost one file, there the run.
    json.dumps([text, headings, meta], allow_nan=False, ensure_ascii=False).encode()
    return Parsed(text, headings, meta)
