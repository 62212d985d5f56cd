"""Every error a user can meet. Each message says what was wrong, with the values, and what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable


class SacError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


def known(name: str, message: str) -> SacError | None:
    """An error of another process, by the name of its class and its words; None if it is none of ours."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, SacError)):
        return None
    error: SacError = kind.__new__(kind, message)  # whatever its constructor takes
    return error


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the known name that a misspelt one is closest to, "" where none is close."""
    import difflib  # only for who misspelt something

    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_process(pid: int, what: str) -> None:
    """ProcessForked unless this is still the process of that number."""
    if os.getpid() != pid:
        raise ProcessForked(
            f"{what} in process {pid}, and this is process {os.getpid()}, forked from it: threads, locks and files do "
            "not survive a fork. Open it in this process alone, or start workers in another way (multiprocessing's "
            '"spawn", gunicorn without --preload)'
        )


class ConfigError(SacError):
    """A setting is unknown, of the wrong type, or out of range."""

    exit_code = 2


class DocumentError(SacError):
    """A file could not be read as text; `reason` is one short lower-case phrase for skip reports."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class ModelError(SacError):
    """A model or tokenizer is missing, of the wrong kind, or cannot be fetched."""


class HashMismatch(ModelError):
    """Downloaded or stored bytes are not the pinned ones."""


class AdapterError(SacError):
    """An adapter folder is malformed, unsafe, or made for another base model."""


class MemoryInvalid(SacError):
    """A KV tensor has the wrong shape or type, or holds NaN or Inf."""


class ProcessForked(SacError):
    """What one process has opened or loaded is used in another that was forked from it."""


class GateError(SacError):
    """The correctness gate found that composed KV differs from the exact reference."""


class TrainingError(SacError):
    """Training data or a checkpoint cannot be used."""


class LibraryError(SacError):
    """A library on disk cannot serve the request."""


class LibraryNotFound(LibraryError):
    """No library at that path."""

    exit_code = 3


class LibraryMismatch(LibraryError):
    """The library was made with another model, adapter, ratio, codec or format."""

    exit_code = 3


class LibraryUnsafe(LibraryError):
    """A library holds what none of ours does and what would harm who opens it. Nothing of it was acted on."""

    exit_code = 3


class LibraryLocked(LibraryError):
    """Somebody is writing to this library: another process, or this one."""


class PassageGone(LibraryError):
    """A passage is not stored: it was removed, or is of another library."""


class LibraryCorrupt(LibraryError):
    """Stored bytes fail their checksum or do not parse."""


class MemoryDamaged(LibraryCorrupt):
    """Stored memories of passages cannot be read; the library leaves these passages out from now on."""


class LibraryFull(LibraryError):
    """The disk is full; the last committed generation is intact."""
