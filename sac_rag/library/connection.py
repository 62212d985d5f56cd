"""SQLite connections with the settings that the promises of a library rest on, and its errors as ours."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryLocked
from sac_rag.library.folder import CATALOG

BUSY_SECONDS = 60.0
"""How long one side waits for the other's short exclusive moments before LibraryLocked."""
_LONGEST = 256 << 20


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection to an existing file, or to a new database in memory, in autocommit mode."""
    target = ":memory:" if path is None else f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(
        target, uri=path is not None, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    # No cache spill: it would take the exclusive lock early and keep every reader out until the commit.
    for pragma in (
        *("synchronous=EXTRA", "secure_delete=ON", "foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON"),
        *("mmap_size=0", "temp_store=MEMORY", "cache_spill=OFF"),
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


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
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
            raise LibraryError(f"cannot open {folder / CATALOG}: {e}; check its permissions") from e
        raise LibraryCorrupt(f"{folder / CATALOG} is damaged ({e}): restore it or index again") from e
    except UnicodeEncodeError as e:
        raise LibraryError(f"a name or id asked of {folder} is no valid Unicode text: {e}") from e
    except (MemoryError, OverflowError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as e:
        raise LibraryCorrupt(f"{folder / CATALOG} is damaged ({e!r}): restore it or index again") from e
