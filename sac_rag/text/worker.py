"""The parser process: reads jobs from standard input, writes what they yield to standard output, trusts neither.

Started by `isolation.ParserProcess`. It must stay small: no models, no network, no files of its own.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import IO, Any

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused
from sac_rag.text.formats import PARSERS, package_of


def write_frame(stream: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """One line of JSON that carries the size of the body, then the body."""
    stream.write(json.dumps({**header, "size": len(body)}).encode() + b"\n")
    stream.write(body)
    stream.flush()


def read_frame(stream: IO[bytes], max_bytes: int) -> tuple[dict[str, Any], bytes] | None:
    """The counterpart; None at the end of the stream or when the frame is cut or not of 0 to `max_bytes` bytes."""
    line = stream.readline(65536)
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    size = header["size"]
    if not 0 <= size <= max_bytes:
        return None
    body = stream.read(size)
    return (header, body) if len(body) == size else None


def run_job(parser: str, data: bytes, config: ReadConfig) -> dict[str, Any]:
    """What a parser yields as JSON values: {"text", "headings", "meta"}, {"headings"} or {"reason"}."""
    try:
        parse = PARSERS.load(parser)
        if parse.__module__.endswith(".outlines"):
            return {"headings": parse(data.decode())}
        parsed = parse(data, config)
        return {"text": parsed.text, "headings": parsed.headings, "meta": parsed.meta}
    except Refused as refused:
        return {"reason": str(refused)}
    except ImportError as missing:
        return {"reason": f"reading {parser} needs a package: pip install {package_of(missing.name)}"}
    except RecursionError:
        return {"reason": "nested too deeply"}
    except MemoryError:
        # the heap may be full of the parser's remains
        return {"reason": "parsing needs too much memory", "last": True}
    except Exception:
        # a parser's own bug on hostile bytes; which one does not help the reader of a skip report
        return {"reason": f"damaged {parser}"}


def main(memory_bytes: int) -> None:
    """Serve jobs until standard input closes."""
    # Parsers may print; only frames go out.
    jobs = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    _limit_process(memory_bytes)
    while (frame := read_frame(jobs, sys.maxsize)) is not None:
        header, data = frame
        config = ReadConfig(**header["config"])
        _limit_cpu(config.cpu_s)
        reply = run_job(header["parser"], data, config)
        del frame, data
        write_frame(replies, {}, json.dumps(reply, ensure_ascii=False).encode())
        if reply.get("last"):
            return


def _limit_process(memory_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows; the wall clock still holds
        return
    for kind, limit in (("AS", memory_bytes), ("CORE", 0), ("FSIZE", 0), ("NOFILE", 64)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
        except (AttributeError, OSError, ValueError):  # not on this system
            continue


def _limit_cpu(seconds: int) -> None:
    """Let the kernel end this process after `seconds` more of processor time."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))
