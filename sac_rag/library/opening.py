"""Making and opening: is it a library, of a format we know, made with the same model and settings?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sac_rag.errors import LibraryError, LibraryMismatch
from sac_rag.foreign import parse_object
from sac_rag.library import folder as files
from sac_rag.library import schema
from sac_rag.library.catalog import Catalog, Head
from sac_rag.library.view import View


def make(
    folder: Path,
    fingerprint: Mapping[str, Any],
    codec: str,
    dim: int,
    codec_state: bytes | None = None,
    wait: float = 0.0,
) -> None:
    """Write an empty library; see `Library.create`."""
    from sac_rag.library.codecs import get_codec, is_fitted

    get_codec(codec, codec_state)  # ConfigError for an unknown name, or without what it must be fitted to
    codec_state = codec_state if is_fitted(codec) else None
    if dim < 1:
        raise LibraryError(f"dim is {dim}; vectors need at least one number")
    if os.path.lexists(folder / files.CATALOG):
        raise LibraryError(f"there is a library at {folder} already: open it, or choose another folder")
    with files.writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if foreign := sorted(name for name in os.listdir(folder) if not files.is_beginning(name)):
            raise LibraryError(f"{folder} holds other files ({foreign[0]}): choose an empty or a new folder")
        lock = files.WriterLock(folder, wait)
    try:
        with files.writing(folder):
            if os.path.lexists(folder / files.CATALOG):
                raise LibraryError(f"another process has just made a library at {folder}: open it")
            os.chmod(folder, 0o700)
            Catalog.create(folder, codec, dim, plain(fingerprint), codec_state)
            files.sync(folder.parent)
    finally:
        lock.release()


def head_of(path: str | os.PathLike[str]) -> Head:
    """What the catalog says of a whole library, without opening it. Raises LibraryNotFound, LibraryCorrupt, and
    LibraryMismatch for a newer format."""
    with Catalog.read(Path(path).absolute()) as disk:
        return disk.head()


def codec_state_of(path: str | os.PathLike[str]) -> bytes | None:
    """What a library's codec was fitted to, without opening it. Raises as `head_of`."""
    with Catalog.read(Path(path).absolute()) as disk:
        return disk.codec_state()


def load(
    folder: Path, fingerprint: Mapping[str, Any] | None, previous: View | None, live: Catalog | None = None
) -> View:
    with Catalog.read(folder) as disk:
        if fingerprint is not None:
            compare(folder, disk.head().fingerprint, plain(fingerprint))
        return View.load(disk, folder, previous, live)


def migrate(folder: Path) -> None:
    """Bring an older format up to date, in one SQLite transaction."""
    with Catalog.read(folder) as disk:
        done = disk.format
    if done == schema.names():
        return
    catalog = Catalog.connect(folder)
    try:
        with files.writing(folder):
            catalog.connection.execute("BEGIN IMMEDIATE")
            schema.migrate(catalog.connection, done)
            catalog.connection.execute("COMMIT")
    finally:
        catalog.close()


def differing(stored: Mapping[str, Any], given: Mapping[str, Any], there: str, here: str) -> list[str]:
    """What differs, by field, with both values and where they are."""
    return [
        f"{field} is {stored.get(field)!r} {there} and {given.get(field)!r} {here}"
        for field in sorted({*stored, *given})
        if stored.get(field) != given.get(field)
    ]


def compare(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    if found := differing(stored, given, "there", "here"):
        raise LibraryMismatch(
            f"{folder} was made with other settings: {'; '.join(found)}. Use the library's own settings, or index "
            "the documents into a new library"
        )


def plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return parse_object(json.dumps(dict(fingerprint), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as e:
        raise LibraryError(f"a fingerprint must hold JSON values only: {e}") from e
