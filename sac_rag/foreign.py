"""Bytes that others wrote: files of bounded size that are files, and JSON of bounded depth.

Whoever sends a library, an adapter, a model folder or a working folder chooses these bytes. What is wrong with them is
an OSError or a ValueError here, and never a hang, a crash or a RecursionError; callers turn it into an error of theirs.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any

MAX_DEPTH = 100
"""Deepest nesting of JSON that is taken; what walks or writes it again does so by recursion."""
MAX_BYTES = 64 << 20
"""Longest file that is read as a text: a tokenizer's is some 10 MB."""


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, a link to one included, to be read. Raises OSError, and ValueError for anything else."""
    # O_NONBLOCK: a pipe in a file's place must not hang us.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """All of a regular file. Raises OSError, and ValueError for a pipe, a device, or more than `most` bytes."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"it has {size:,} bytes, and {most:,} are the most that is read")
        data = file.read(most + 1)
    if len(data) > most:  # files of /proc say that they have none
        raise ValueError(f"it has more than {most:,} bytes, the most that is read")
    return data


def check_regular(path: Path, most: int) -> int:
    """Bytes of a regular file, a link to one included. Raises OSError, and ValueError as `read_bytes`."""
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):
        raise ValueError("it is not a regular file")
    if info.st_size > most:
        raise ValueError(f"it has {info.st_size:,} bytes; {most:,} are the most that it may have")
    return info.st_size


def leaves(path: str) -> bool:
    """Whether a path that is meant relative to a folder may lead out of it; links are not followed."""
    return Path(path).is_absolute() or ".." in Path(path).parts


def without_control(ids: list[int], control: frozenset[int], unknown: int | None) -> list[int]:
    """Ids of a text of others without control tokens, which some vocabularies hold as words; `unknown` in their place.

    The same list where there are none, as in nearly every text.
    """
    if control.isdisjoint(ids):
        return ids
    return [i if i not in control else unknown for i in ids if i not in control or unknown is not None]  # type: ignore[misc]


def read_start(path: Path, most: int) -> bytes:
    """The first `most` bytes of a regular file, a link to one included. Raises OSError, ValueError."""
    with open_regular(path) as file:
        return file.read(most)


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """As `read_bytes`, UTF-8."""
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes, *, twice: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError for what is none, for NaN and infinities, and beyond MAX_DEPTH.

    twice: whether a key may stand in an object twice, of which the last counts: other readers take the first.
    """
    pairs = None if twice else _once
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=pairs)
    except RecursionError:
        raise _too_deep() from None
    opening = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(map(text.count, opening)) > MAX_DEPTH:  # type: ignore[arg-type]
        _check_depth(value)
    return value


def parse_object(text: str | bytes, *, twice: bool = True) -> dict[str, Any]:
    """As `parse_json`; ValueError for what is no object, too."""
    value = parse_json(text, twice=twice)
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}, not an object")
    return value


def read_json(path: Path, most: int = MAX_BYTES) -> Any:
    """The value of a JSON file. Raises OSError, ValueError."""
    return parse_json(read_text(path, most))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} stands in one object twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise _too_deep()


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return [v for v in value.values() if isinstance(v, dict | list)]
    return [v for v in value if isinstance(v, dict | list)] if isinstance(value, list) else ()
