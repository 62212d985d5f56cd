"""The model cache on disk: folders that appear whole or not at all, and file hashes that are computed once.

Layout under `cache_root()`: `models/<name>-<sha12>/` (one model each, self-described by `sac-model.json`),
`hashes/` (SHA-256 of files and hashes of their blocks, by path, size and mtime), `locks/`.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sac_rag import foreign
from sac_rag.errors import HashMismatch, ModelError

MANIFEST = "sac-model.json"
MANIFEST_FORMAT = 1
BLOCK = 1 << 20
"""Bytes that have a hash of their own, so that a part of a file can be looked at."""
BLOCK_HASH = 8


def cache_root() -> Path:
    """The folder of everything fetched: `SAC_CACHE`, else the user's cache folder. It may not exist yet."""
    if chosen := os.environ.get("SAC_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("sac-rag"))


def models_root() -> Path:
    """The folder that holds one folder a model."""
    return cache_root() / "models"


@dataclass(frozen=True)
class Manifest:
    """What a cached model folder says of itself."""

    name: str
    kind: str
    """"base" or "embedder"."""
    source: str
    licence: str
    recipe: str
    """How the folder was made from its source; a folder made by another recipe is made anew."""
    fingerprint: str
    tokenizer_fingerprint: str
    files: dict[str, tuple[int, str]]
    """Relative posix path → (bytes, sha256) of every file but the manifest."""
    format: int = MANIFEST_FORMAT


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cached model; None where there is none or it cannot be read."""
    try:
        raw = foreign.read_json(folder / MANIFEST)
        if raw["format"] != MANIFEST_FORMAT:
            return None
        raw["files"] = {name: (int(size), str(sha)) for name, (size, sha) in raw["files"].items()}
        return Manifest(**raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_whole(folder: Path, recipe: str | None = None) -> bool:
    """True when every file of the manifest is there with its size (contents are checked by `fingerprint_of`)."""
    manifest = read_manifest(folder)
    if manifest is None or (recipe is not None and manifest.recipe != recipe):
        return False
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in manifest.files.items())
    except OSError:
        return False


def write_manifest(
    folder: Path, *, name: str, kind: str, source: str, licence: str, recipe: str, fingerprint: str, tokenizer: str
) -> Manifest:
    """Describe the files now in `folder`; hashes each of them."""
    files = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, hash_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(name, kind, source, licence, recipe, fingerprint, tokenizer, files)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), "utf-8")
    return manifest


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of one cached model; another process that wants the same model waits."""
    from filelock import FileLock

    locks = cache_root() / "locks"
    with disk_errors(locks):
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name}.lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a ModelError that names the folder and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(f"no space left for models in {where}: free some, or set SAC_CACHE elsewhere") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise ModelError(f"cannot write to the model cache {where}: set SAC_CACHE to a writable folder") from error
        raise


def build_once(folder: Path, recipe: str, build: Callable[[Path, Path], Manifest]) -> Path:
    """`folder`, made by `build(out, scratch)` if it is not there whole.

    `build` fills `out` and returns its manifest; both its folders lie in the cache and vanish on failure. The result
    appears by one rename, so a reader sees all of it or nothing; a kill leaves only a hidden temporary folder, which
    the next build of the same model removes. One process builds, the others wait.
    """
    if is_whole(folder, recipe):
        return folder
    with locked(folder.name), disk_errors(folder.parent):
        if is_whole(folder, recipe):  # another process was faster
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        temp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            out, scratch = temp / "out", temp / "scratch"
            out.mkdir()
            scratch.mkdir()
            manifest = build(out, scratch)
            mode = (out / MANIFEST).stat().st_mode
            for path in out.rglob("*"):
                if path.is_file():
                    path.chmod(mode)  # some writers make private files; the cache may be shared
                    _fsync(path)
            if folder.exists():  # damaged, or of an older recipe
                os.rename(folder, temp / "old")
            os.rename(out, folder)
            for name in manifest.files:
                cached_hash(folder / name)  # of what lies on the disk now
        finally:
            shutil.rmtree(temp, ignore_errors=True)
    return folder


def _fsync(path: Path) -> None:
    # A rename that survives a power cut before its bytes do would leave a whole-looking folder of zeros.
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Hashes:
    """What a file held when it was read whole."""

    sha256: str
    blocks: bytes
    """`hash_of_block` of each BLOCK, one behind the other."""


def hash_of_block(data: bytes) -> bytes:
    """Eight bytes of BLAKE2b, which every Python has: models are loaded where little else is installed."""
    return hashlib.blake2b(data, digest_size=8).digest()


def hashes_of(path: Path) -> Hashes:
    """Hashes of a file, read now."""
    digest, blocks = hashlib.sha256(), bytearray()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            blocks += hash_of_block(block)
    return Hashes(digest.hexdigest(), bytes(blocks))


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read now."""
    return hashes_of(path).sha256


def cached_hash(path: Path) -> str:
    """SHA-256 (hex) of a file; read again only when its size or mtime changed since last time.

    That a disk returns other bytes than it was given changes neither: see `checking`.
    """
    if known := noted(path):
        return known.sha256
    found = hashes_of(path)
    remember(path, found)
    return found.sha256


def noted(path: Path) -> Hashes | None:
    """What is known of a file of this size and mtime; None where it was not read yet. Raises OSError without a file."""
    stat = path.stat()
    try:
        note = foreign.read_json(_note(path))
        if (note["size"], note["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            known = Hashes(str(note["sha256"]), base64.b64decode(note["blocks"], validate=True))
            return known if len(known.blocks) == BLOCK_HASH * -(-stat.st_size // BLOCK) else None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _note(path: Path) -> Path:
    return cache_root() / "hashes" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"


def remember(path: Path, found: Hashes) -> None:
    """Note the hashes of a file as it is."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        known = {"sha256": found.sha256, "blocks": base64.b64encode(found.blocks).decode()}
        about = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        write_note(_note(path), json.dumps({**about, **known}))


def write_note(note: Path, text: str) -> None:
    """Keep what another process would have to find out again; a reader sees all of it or nothing.

    Only saves time: a cache that cannot be written is no reason to fail.
    """
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, note)


def check_hash(what: str, found: str, wanted: str, remedy: str) -> None:
    """Raise HashMismatch naming both hashes unless they are equal."""
    if found != wanted:
        raise HashMismatch(f"{what} has sha256 {found}, expected {wanted}: {remedy}")
