"""A library as one file, so that one machine compresses for many: made, checked, and unpacked as what may be hostile.

A pack is a ZIP archive whose members are stored as they are, never compressed: `manifest.json`, which says what the
library was made with and the SHA-256 of every file, then the files themselves, by the names that a library's have.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, LibraryFull, LibraryUnsafe
from sac_rag.foreign import open_regular, parse_object
from sac_rag.library import folder as files
from sac_rag.library.checks import problems
from sac_rag.library.library import Library

FORMAT = "sac-rag pack 1"
MANIFEST = "manifest.json"
MOST_MANIFEST = 1 << 24
MOST_FILES = 100_000
MOST_DIRECTORY = 128 * MOST_FILES
"""Bytes of an archive's list of members, each of which becomes an object before any can be looked at."""
CHUNK = 1 << 20
_ABOUT = ("library", "generation", "documents", "passages", "fingerprint")
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error)
"""What `zipfile` raises over bytes that are none of an archive's."""


@dataclass(frozen=True)
class Packed:
    """What a pack holds."""

    sha256: str
    """Of the whole file, in hex digits."""
    size: int
    """Bytes of the file."""
    library: str
    generation: int
    documents: int
    passages: int
    fingerprint: Mapping[str, Any]
    """What the memories were made with: `SacRag.open` compares it."""


def pack(library: str | Path, output: str | Path, *, wait: float = 0.0) -> Packed:
    """Write a library into one new file; nobody else writes to it meanwhile. wait: seconds to wait for who does.

    The pack holds all that the library holds, the text included, and not what was removed but for its bytes until gc.
    Raises ConfigError where `output` is there already, LibraryLocked, LibraryFull, and as `Library.open` does.
    """
    target = _new(output, "file")
    with Library.open(library, write=True, wait=wait) as opened, _beside(target) as part:
        head, folder = opened.head, opened.path
        names = [files.CATALOG, *(n for n in sorted(os.listdir(folder)) if n != files.CATALOG and files.is_stored(n))]
        about = {
            "format": FORMAT,
            **{name: getattr(head, name) for name in _ABOUT},
            "files": [{"name": n, "size": (folder / n).stat().st_size, "sha256": _sha256(folder, n)} for n in names],
        }
        with files.writing(folder), zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
            archive.writestr(MANIFEST, json.dumps(about, sort_keys=True))
            for name in names:
                archive.write(folder / name, name)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
            told = Packed(_digest(file), os.fstat(file.fileno()).st_size, **{name: about[name] for name in _ABOUT})
        _appear(part, target)
    return told


def unpack(packed: str | Path, library: str | Path, *, sha256: str | None = None) -> Packed:
    """Make a new library out of a pack. sha256: what the whole file must hash to, as `pack` told it.

    Nothing appears at `library` before every byte is written and checked. Raises ConfigError where something is there,
    LibraryUnsafe for an archive that none of ours is, LibraryCorrupt for bytes that are not those of its manifest or
    of `sha256`, LibraryFull.
    """
    source, target = Path(packed), _new(library, "folder").absolute()
    try:
        file = open_regular(source)
    except (OSError, ValueError) as error:
        raise LibraryError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None
    with file:
        found, size = _digest(file), os.fstat(file.fileno()).st_size
        if sha256 is not None and found != sha256.strip().lower():
            raise LibraryCorrupt(f"{source} has SHA-256 {found}, not {sha256}: it is not the file that was packed")
        return Packed(found, size, **_unpacked(source, file, size, target))


def _unpacked(source: Path, file: IO[bytes], size: int, target: Path) -> dict[str, Any]:
    """What the library says of itself that was made at `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", dir=target.parent))  # mode 0700
    except OSError as error:
        raise _unwritable(target, error, "folder") from None
    try:
        with _archive(source, file, size) as archive:
            about = _manifest(source, archive, size)
            _check_room(place, sum(f["size"] for f in about["files"]))
            with files.writing(place):
                for member in about["files"]:
                    _extract(source, archive, member, place)
        files.sync(place)
        if wrong := problems(place, deep=False):
            raise LibraryCorrupt(f"{source} holds no sound library: {wrong[0]}")
        with Library.open(place) as opened:
            own = {name: getattr(opened.head, name) for name in _ABOUT}
        if wrong := [name for name in _ABOUT if about[name] != own[name]]:
            raise LibraryCorrupt(f"the {wrong[0]} that {source} says is not that of its library")
        try:
            os.rename(place, target)
        except OSError as error:  # somebody made one of that name meanwhile, or the name is too long
            raise _unwritable(target, error, "folder") from None
        files.sync(target.parent)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return own


@contextlib.contextmanager
def _archive(source: Path, file: IO[bytes], size: int) -> Iterator[zipfile.ZipFile]:
    try:
        _check_directory(source, file, size)
        with zipfile.ZipFile(file) as archive:
            yield archive
    except OSError as error:  # also for a place in the file that cannot be, of a damaged directory
        raise LibraryError(f"cannot unpack {source}: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise LibraryCorrupt(f"{source} is no pack, or is damaged: {error}") from None


def _check_directory(source: Path, file: IO[bytes], size: int) -> None:
    """LibraryUnsafe where the end of an archive, of which ours have no comment, announces too many members."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98)  # a record of 64 bits, a word that says where it is, and the last record
    if tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise LibraryCorrupt(f"{source} is no pack, or is damaged: it does not end as an archive")
    length = int.from_bytes(tail[-10:-6], "little")
    if tail[-42:-38] == b"PK\6\7":
        if tail[:4] != b"PK\6\6" or int.from_bytes(tail[-34:-26], "little") != size - 98:
            raise LibraryUnsafe(f"{source} does not end as packs of ours do")
        length = int.from_bytes(tail[40:48], "little")
    if length > MOST_DIRECTORY:
        raise LibraryUnsafe(f"{source} lists its members in {length:,} bytes: no pack of ours does")


def _manifest(source: Path, archive: zipfile.ZipFile, size: int) -> dict[str, Any]:
    """The manifest of an archive that is as ours are: plain files of a library, each once, stored as they are."""
    members = archive.infolist()
    names = [m.filename for m in members]
    if len(members) > MOST_FILES or len(set(names)) < len(names):
        raise LibraryUnsafe(f"{source} holds {len(names):,} members, some perhaps twice: no pack of ours does")
    for member in members:
        if member.filename != MANIFEST and not files.is_stored(member.filename):
            raise LibraryUnsafe(f"{source} holds {member.filename!r}, which is no file of a library")
        if (
            member.compress_type != zipfile.ZIP_STORED
            or member.file_size != member.compress_size
            or member.flag_bits & 1
        ):
            raise LibraryUnsafe(f"{source} holds {member.filename!r} compressed or encrypted, which packs never are")
    if sum(m.file_size for m in members) > size:
        raise LibraryUnsafe(f"{source} would unpack to more bytes than it has: its members overlap")
    if MANIFEST not in names or archive.getinfo(MANIFEST).file_size > MOST_MANIFEST:
        raise LibraryUnsafe(f"{source} has no {MANIFEST}, or one that is too large: it is no pack of ours")
    try:
        about = parse_object(archive.read(MANIFEST), twice=False)
        if about["format"] != FORMAT:
            raise LibraryError(f"{source} is a {about['format']!r}; this version reads {FORMAT!r}")
        told = {f["name"]: f["size"] for f in about["files"]}
        if len(told) < len(about["files"]) or not all(
            type(f["size"]) is int and isinstance(f["sha256"], str) for f in about["files"]
        ):
            raise ValueError("files are not a name, a size and a hash, each once")
        if missing := set(_ABOUT) - set(about):
            raise KeyError(missing.pop())
    except (KeyError, TypeError, ValueError) as error:
        raise LibraryUnsafe(f"{MANIFEST} of {source} is not as ours are: {error!r}") from None
    if set(told) != set(names) - {MANIFEST} or files.CATALOG not in told:
        raise LibraryUnsafe(f"{source} holds other files than its {MANIFEST} names")
    for name, length in told.items():
        if archive.getinfo(name).file_size != length:
            raise LibraryCorrupt(f"{name} in {source} has {archive.getinfo(name).file_size:,} bytes, not {length:,}")
    return about


def _extract(source: Path, archive: zipfile.ZipFile, file: Mapping[str, Any], place: Path) -> None:
    """One file, byte by byte as its manifest says; the name has been checked to be one of a library's."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    digest = hashlib.sha256()
    with archive.open(file["name"]) as member, os.fdopen(os.open(place / file["name"], flags, 0o600), "wb") as out:
        while block := member.read(CHUNK):
            digest.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != file["sha256"]:
        raise LibraryCorrupt(f"{file['name']} in {source} has another SHA-256 than its {MANIFEST} says")


def _check_room(place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if size > free:
        raise LibraryFull(f"the library has {size:,} bytes and {place.parent} has {free:,} left: make room")


def _appear(part: Path, target: Path) -> None:
    """Give a finished file its name; where somebody made one of that name meanwhile, that stays."""
    try:
        os.link(part, target)
    except FileExistsError:
        raise ConfigError(f"{target} is there already: name a new file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _unwritable(target, error, "file") from None
        os.rename(part, target)  # on a file system without second names
    files.sync(target.parent)


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A file to be written beside the one that it becomes, mode 0600; gone afterwards."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{target.name[:64]}.", dir=target.parent)
    except OSError as error:
        raise _unwritable(target, error, "file") from None
    os.close(fd)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _unwritable(target: Path, error: OSError, kind: str) -> ConfigError:
    return ConfigError(f"cannot write {target}: {error.strerror}; name a new {kind} in a folder that takes one")


def _new(target: str | Path, kind: str) -> Path:
    """The path of what is to be made. ConfigError where something is there, and for a name that nothing can have."""
    path = Path(target)
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} holds NUL, which no name does: name a new {kind}")
    if os.path.lexists(path):
        raise ConfigError(f"{path} is there already: name a new {kind}")
    return path


def _sha256(folder: Path, name: str) -> str:
    fd, _ = files.open_read(folder, name)
    with os.fdopen(fd, "rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
