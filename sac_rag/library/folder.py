"""The folder of a library: which names may exist in it, who may write, and how bytes become durable.

Knows nothing of what the files hold. A file is opened only by a name made here from an integer, never by text that
was read from somewhere, and never through a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryFull, LibraryLocked, LibraryUnsafe

T = TypeVar("T")

CATALOG = "catalog.sqlite"
NEW_CATALOG = "catalog.sqlite.new"
LOCK = "writer.lock"
SPOOL_PREFIX = "spool-"
MADE_SPOOL_PREFIX = "made-spool-"

_DATA = re.compile(r"(?:seg-[0-9]{1,15}\.safetensors|(?:faiss|lexical)-[0-9]{1,15}\.idx)(?:\.tmp)?|spool-\w+", re.ASCII)
_STORED = re.compile(r"seg-[0-9]{1,15}\.safetensors|(?:faiss|lexical)-[0-9]{1,15}\.idx", re.ASCII)
_MADE = re.compile(r"made-([0-9]{1,15})-[0-9]{1,15}\.safetensors", re.ASCII)
_DAMAGED = re.compile(r"damaged-[0-9]{1,15}\.sqlite", re.ASCII)
_BEING_MADE = re.compile(rf"{_MADE.pattern}(?:\.tmp)?|{MADE_SPOOL_PREFIX}\w+", re.ASCII)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SQLITE_IOERR_WRITE = 778


def segment_name(number: int) -> str:
    return f"seg-{int(number)}.safetensors"


def made_name(process: int, number: int) -> str:
    """Of a segment that is finished and in no catalog yet; processes that make some choose different names."""
    return f"made-{int(process)}-{int(number)}.safetensors"


def is_made(name: str) -> bool:
    return _MADE.fullmatch(name) is not None


def damaged_name(generation: int) -> str:
    """Of a damaged catalog that `repair` put aside."""
    return f"damaged-{int(generation)}.sqlite"


def erase_damaged(folder: Path) -> None:
    """Unlink damaged catalogs that were put aside. Writer only."""
    for name in os.listdir(folder):
        if _DAMAGED.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def is_stored(name: str) -> bool:
    """Whether a committed library has files of this name."""
    return name == CATALOG or _STORED.fullmatch(name) is not None


def faiss_name(generation: int) -> str:
    return f"faiss-{int(generation)}.idx"


def lexical_name(generation: int) -> str:
    return f"lexical-{int(generation)}.idx"


def with_room(folder: Path, make: Callable[[], T]) -> T:
    """What `make` opens; at the limit on open files that limit is raised, and LibraryError says what else helps."""
    try:
        return make()
    except OSError as e:
        if e.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        problem = e
    try:
        if _raise_limit():
            return make()
    except OSError as e:
        if e.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    raise LibraryError(
        f"{folder} has more segments than this process may open: run `sac gc`, which joins them, or raise `ulimit -n`"
    ) from problem


def _raise_limit() -> bool:
    """Let this process open as many files as it may; whether that is more than before."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (hard, 10_240):  # macOS takes no "infinite"
        with contextlib.suppress(OSError, ValueError):
            if most != soft:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                return True
    return False


def open_read(folder: Path, name: str) -> tuple[int, int]:
    """(file descriptor, size in bytes) of a regular file; LibraryCorrupt when it is missing or anything else."""
    path = folder / name
    try:
        # O_NONBLOCK: a FIFO in a file's place must not hang us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        fd = with_room(folder, lambda: os.open(path, flags))
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.ENXIO):
            what = "is missing" if e.errno == errno.ENOENT else "is not a regular file"
            raise LibraryCorrupt(f"{path} {what}, but the catalog refers to it: restore it or index again") from e
        raise LibraryError(f"cannot read {path}: {e.strerror}") from e
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise LibraryCorrupt(f"{path} is not a regular file: restore it or index again")
    return fd, info.st_size


def read(folder: Path, name: str, most: int) -> bytes:
    """All of a regular file; LibraryCorrupt where it is longer than `most` bytes, other errors as of `open_read`."""
    fd, size = open_read(folder, name)
    with os.fdopen(fd, "rb") as file:
        if size > most:
            raise LibraryCorrupt(f"{folder / name} has {size:,} bytes, which is more than it can have: {most:,}")
        return file.read(size)


def identity(path: Path, *, write: bool) -> tuple[int, int]:
    """(device, inode) of a regular file; LibraryCorrupt where `path` is a link or anything else. Raises OSError.

    With `write` LibraryUnsafe, too, for a file that has a second name: a change would reach what that stands for.
    """
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):
        raise LibraryCorrupt(f"{path} is not a regular file: a library never holds links; restore it or index again")
    if write:
        _refuse_second_name(path, info)
    return info.st_dev, info.st_ino


def _refuse_second_name(path: Path, info: os.stat_result) -> None:
    if info.st_nlink > 1:
        raise LibraryUnsafe(
            f"{path} is the same file as another ({info.st_nlink} hard links), which would be changed with it: if the "
            "library is your own, change a copy of it, made by `cp -r`"
        )


def write_durable(folder: Path, name: str, chunks: Iterable[bytes | bytearray | memoryview]) -> int:
    """Write `name` so that it appears whole or not at all; returns its bytes. The folder is not synced here."""
    temporary = folder / f"{name}.tmp"
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as out:
            out.writelines(chunks)
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        os.rename(temporary, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return size


def sync(folder: Path) -> None:
    """Make the names in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep(folder: Path, keep: Collection[str], *, made: bool = False) -> None:
    """Unlink our data files that are not in `keep`: leftovers of a kill, or of a commit just made. Writer only.

    made: also segments that wait for a commit, which this writer's own processes may be making.
    """
    for name in os.listdir(folder):
        if (_DATA.fullmatch(name) and name not in keep) or (made and _BEING_MADE.fullmatch(name)):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def erase_made(folder: Path, processes: Collection[int]) -> None:
    """Unlink segments of processes that have ended, which no commit took in."""
    for name in os.listdir(folder):
        found = _BEING_MADE.fullmatch(name)
        if found and found[1] and int(found[1]) in processes:
            with contextlib.suppress(OSError):
                os.unlink(folder / name)


def is_beginning(name: str) -> bool:
    """Whether a library that was being made when its process ended may have left this name."""
    return name in (LOCK, NEW_CATALOG, f"{NEW_CATALOG}-journal")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk into LibraryFull and other write failures into LibraryError."""
    try:
        yield
    except (OSError, sqlite3.Error) as e:
        if isinstance(e, OSError):
            full = e.errno in _FULL
        else:
            code = getattr(e, "sqlite_errorcode", 0)
            if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise LibraryLocked(f"{folder} is busy: another process keeps its catalog locked; try again") from e
            if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise LibraryCorrupt(f"{folder / CATALOG} is damaged ({e}): restore it or index again") from e
            full = code in (sqlite3.SQLITE_FULL, _SQLITE_IOERR_WRITE)
        if full or _free_bytes(folder) < 1 << 16:
            raise LibraryFull(
                f"no room left to write {folder} ({e}): what was committed before is intact, the rest was not stored; "
                "free some space and repeat"
            ) from e
        raise LibraryError(f"cannot write {folder}: {e}") from e


def _free_bytes(folder: Path) -> int:
    try:
        room = os.statvfs(folder)
    except OSError:
        return 1 << 62
    return room.f_bavail * room.f_frsize


_RETRY_SECONDS = 0.1
_LOCKS: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Held by the one process that may write, until `release`, until nobody has this object any more, or until the
    process ends, however it ends.
    """

    def __init__(self, folder: Path, wait: float = 0.0) -> None:
        """wait: seconds to try for. Raises LibraryLocked, naming the process that holds it, LibraryError where nothing
        can be locked.
        """
        self._fd, deadline = -1, time.monotonic() + wait
        while not self._take(folder):
            left = deadline - time.monotonic()
            if not left > 0:
                raise LibraryLocked(f"{folder} is being written by {_holder(folder)}")
            time.sleep(min(_RETRY_SECONDS, left))
        found = os.fstat(self._fd)
        self.identity = found.st_dev, found.st_ino
        _LOCKS.add(self)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only the courtesy is lost
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)

    def _take(self, folder: Path) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(folder / LOCK, flags, 0o600)
        except OSError as e:
            raise LibraryError(f"cannot open {folder / LOCK} for writing: {e.strerror}") from e
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise LibraryUnsafe(f"{folder / LOCK} is not a regular file: remove it if the library is your own")
            _refuse_second_name(folder / LOCK, info)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except LibraryUnsafe:
            os.close(fd)
            raise
        except OSError as e:
            os.close(fd)
            if isinstance(e, BlockingIOError):
                return False
            raise LibraryError(
                f"cannot lock {folder / LOCK}: {e.strerror}; write the library on a file system that has locks"
            ) from e
        self._fd = fd
        return True

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.release()


def _holder(folder: Path) -> str:
    """Who holds the lock, and what to do about it."""
    held = b""
    with contextlib.suppress(OSError):
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            held = os.pread(fd, 32, 0).strip()
        finally:
            os.close(fd)
    if held == str(os.getpid()).encode():
        return (
            f"process {os.getpid()}, which is this one: it has the library open for writing already; use that object, "
            "or close it first"
        )
    who = f"process {held.decode()}" if held.isdigit() else "another process"
    return f"{who}: wait until it ends (--wait SECONDS), or open the library for reading only"


def _forget_locks() -> None:
    """In a forked child: the lock is its parent's, and must not outlive it there."""
    for lock in list(_LOCKS):
        lock.release()


os.register_at_fork(after_in_child=_forget_locks)
