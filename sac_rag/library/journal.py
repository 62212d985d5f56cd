"""What lies beside a catalog, looked at before SQLite does: it acts on such files before it reads a row.

A rollback journal may end in the name of a "super-journal", a file elsewhere that SQLite's recovery opens and deletes.
No transaction of ours spans two databases, so that no journal of ours has one: whoever put it there wants a file of
the reader deleted. A write-ahead log would stand in for pages of the catalog; ours has none.

The catalog itself must not be opened here: closing any descriptor of it would drop the locks that SQLite holds on it
in this process.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from sac_rag.errors import LibraryError, LibraryUnsafe
from sac_rag.library.folder import CATALOG

JOURNAL = f"{CATALOG}-journal"
_MAGIC = bytes.fromhex("d9d505f920a163d7")
_TAIL = 16
"""Length of a name, its checksum, and the magic, at the end of a journal."""
_SHOWN = 200


def check_beside(folder: Path) -> None:
    """Raises LibraryUnsafe for a write-ahead log, or a journal that is a link, no file, or names another file."""
    for name in (f"{CATALOG}-wal", f"{CATALOG}-shm"):
        if os.path.lexists(folder / name):
            raise LibraryUnsafe(
                f"{folder / name} is no file of ours, and would change what the catalog says: remove it if the library "
                "is your own, else do not use this library"
            )
    path = folder / JOURNAL
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise _no_file(path) from e
        raise LibraryError(f"cannot read {path}: {e.strerror}; check its permissions") from e
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:  # 0: its writer has just finished
            raise _no_file(path)
        if named := _super_journal(fd, info.st_size):
            raise LibraryUnsafe(
                f"{path} names {os.fsdecode(named[:_SHOWN])!r}, a file that opening the library would delete. No "
                "journal of ours names a file: do not use this library, and take it anew from where you trust it"
            )
    finally:
        os.close(fd)


def _no_file(path: Path) -> LibraryUnsafe:
    return LibraryUnsafe(
        f"{path} is a link or no file at all, and opening the library would act on what it stands for: do not use this "
        "library, and take it anew from where you trust it"
    )


def _super_journal(fd: int, size: int) -> bytes:
    """The name at the end of a journal, empty if there is none. SQLite believes fewer of them: its checksum is not
    looked at here."""
    if size < _TAIL:
        return b""
    tail = os.pread(fd, _TAIL, size - _TAIL)
    length = int.from_bytes(tail[:4], "big")
    if tail[8:] != _MAGIC or not length:
        return b""
    start = max(0, size - _TAIL - length)
    return os.pread(fd, min(size - _TAIL - start, _SHOWN + 1), start) or b"?"
