"""SQLite connections with the settings that the promises of a library rest on, and its errors as ours."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryLocked, LibraryUnsafe
from sac_rag.library.folder import CATALOG

BUSY_SECONDS = 60.0
"""How long one side waits for the other's short exclusive moments before LibraryLocked."""
_LONGEST = 256 << 20
_LONGEST_SQL = 1_000_000
STEPS, STEPS_PER_BYTE = 20_000_000, 5
"""Instructions of SQLite's machine that reading a catalog may take. A sound one takes less than one a byte of its file
to be checked whole; one that was made to can take for ever, with few bytes."""
_AT_ONCE = 100_000


def connect(
    path: Path | None, *, write: bool = False, bounded: bool = False, look: Callable[[], None] = lambda: None
) -> sqlite3.Connection:
    """A connection to an existing file, or to a new database in memory, in autocommit mode.

    Without `write` SQLite changes nothing on disk: a journal that a killed writer left is an error of `needs_recovery`.
    bounded: what it may cost is bounded by the length of the file, and ends in LibraryCorrupt by way of `reading`.
    look: called when SQLite has opened the file, and has not yet read it or looked at what lies beside it.
    """
    target = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}"
    connection = sqlite3.connect(
        target, uri=path is not None, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        look()
        if path is not None and bounded:
            bound(connection, path.stat().st_size)
        _settle(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _settle(connection: sqlite3.Connection) -> None:
    longest = connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(_LONGEST, longest))
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _LONGEST_SQL)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # one database a transaction: see journal.py
    # No cache spill: it would take the exclusive lock early and keep every reader out until the commit.
    for pragma in (
        *("synchronous=EXTRA", "secure_delete=ON", "foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON"),
        *("mmap_size=0", "temp_store=MEMORY", "cache_spill=OFF"),
    ):
        connection.execute(f"PRAGMA {pragma}")


def bound(connection: sqlite3.Connection, size: int) -> None:
    """From now on let no statement take more than a file of `size` bytes can be worth, in steps and in one value."""
    left = STEPS + STEPS_PER_BYTE * size

    def spend() -> bool:
        nonlocal left
        left -= _AT_ONCE
        return left < 0

    connection.set_progress_handler(spend, _AT_ONCE)
    # A value is no longer than its file, unless the pages it lies on form a circle.
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(_LONGEST, max(size, 1 << 16)))


def refuse_wal(path: Path) -> None:
    """Raises LibraryUnsafe for a catalog that asks for a write-ahead log: SQLite makes it, as soon as it reads.

    Asked without locks, where it refuses to. (Reading the header by hand is no way: closing any descriptor of the file
    would drop the locks that this process holds on it.)
    """
    probe = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&nolock=1", uri=True)
    try:
        probe.execute("PRAGMA schema_version")
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorcode", 0) == sqlite3.SQLITE_CANTOPEN and os.access(path, os.R_OK):
            raise LibraryUnsafe(
                f"{path} asks for a write-ahead log, which ours never does: if the library is your own, run `sqlite3 "
                "catalog.sqlite 'PRAGMA journal_mode=DELETE'` there, else do not use it"
            ) from e
    finally:
        probe.close()


def needs_recovery(error: BaseException | None) -> bool:
    """Whether SQLite refused to read because what a killed writer left has to be taken back first."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY_ROLLBACK


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what SQLite raises on reading into LibraryLocked, LibraryError or LibraryCorrupt."""
    try:
        yield
    except sqlite3.ProgrammingError as e:
        raise LibraryError(f"{folder} cannot be read: {e}; open the library again") from e
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LibraryLocked(f"{folder} is busy: a writer keeps its catalog locked; try again") from e
        if code == sqlite3.SQLITE_INTERRUPT:
            raise LibraryCorrupt(
                f"{folder / CATALOG} takes more steps to read than a file of its length can need: it is damaged, or "
                "was made to do so; restore it or index again"
            ) from e
        if needs_recovery(e):
            raise LibraryError(
                f"a writer of {folder} was killed, and what it left cannot be taken back: {folder / CATALOG} and its "
                "folder must be writable for that"
            ) from e
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
            raise LibraryError(f"cannot open {folder / CATALOG}: {e}; check its permissions") from e
        raise LibraryCorrupt(f"{folder / CATALOG} is damaged ({e}): restore it or index again") from e
    except UnicodeEncodeError as e:
        raise LibraryError(f"a name or id asked of {folder} is no valid Unicode text: {e}") from e
    except (MemoryError, OverflowError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as e:
        raise LibraryCorrupt(f"{folder / CATALOG} is damaged ({e!r}): restore it or index again") from e
