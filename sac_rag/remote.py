"""Libraries in object stores: a copy is kept on this machine, and the copy is what is read.

A store holds a library as its folder, or as one file that `sac pack` wrote. Whoever can write there may send anything:
names are those of a library's files or are not looked at, sizes are those that were told, and the copy is checked as a
library of somebody else before it counts. What the store holds is compared at every opening.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, LibraryNotFound, LibraryUnsafe, SacError
from sac_rag.library import folder as files
from sac_rag.models.cache import cache_root
from sac_rag.models.wheels import is_offline

SCHEMES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
    "memory": "fsspec",
}
"""What may stand in front of ://, and the package that it needs. Others of fsspec read files of this machine, run
through several stores, or are no stores."""
IDENTITY = frozenset(
    "size etag md5hash content-md5 generation lastmodified last-modified last_modified mtime created versionid".split()
)
"""What a store says of a file that changes with its bytes, by names of various stores in lower case."""
ENTRIES = 100_000
"""Most files of a folder in a store that are looked at."""
ATTEMPTS = 3
"""How often a library is fetched that changes meanwhile."""
CHUNK = 1 << 20


def is_remote(library: str | os.PathLike[str]) -> bool:
    """Whether a library is named by a URL."""
    return isinstance(library, str) and "://" in library


def copy_of(url: str) -> Path:
    """The folder of an up-to-date copy of the library at a URL, for reading.

    Copies lie under `libraries/` of the cache; of one URL that in use and the one before it are kept. With SAC_OFFLINE
    the newest copy serves. Raises ConfigError for a URL that is of no store, or whose package is not there,
    LibraryNotFound, LibraryUnsafe and LibraryCorrupt as opening does, LibraryError for a store that does not answer.
    """
    from filelock import FileLock

    root = cache_root() / "libraries" / hashlib.sha256(url.encode()).hexdigest()[:24]
    if is_offline():
        if not (kept := _copies(root)):
            raise LibraryError(f"there is no copy of {url} in the cache, and SAC_OFFLINE is set: unset it once")
        return kept[0]
    store = _Store(url)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(root / "lock"):
        for _ in range(ATTEMPTS):
            found = store.listing()
            target = root / _version(found)
            if not target.exists():
                store.fetch(found, target)
                if _version(store.listing()) != target.name and store.is_known(found):
                    shutil.rmtree(target)
                    continue
            os.utime(target)
            for old in _copies(root)[2:]:
                shutil.rmtree(old, ignore_errors=True)
            return target
    raise LibraryError(f"{url} changed {ATTEMPTS} times while it was fetched: stop who writes it, and try again")


class _Store:
    """What stands at a URL."""

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        package = SCHEMES.get(scheme)
        if package is None or "::" in url or "://" in rest:
            raise ConfigError(f"library {url!r} is in no store that is read: {', '.join(SCHEMES)}")
        for name in dict.fromkeys(("fsspec", package)):
            if importlib.util.find_spec(name) is None:
                raise ConfigError(f"library {url!r} needs the package {name}: pip install {name}")
        import fsspec

        self.url, self._web = url, package == "aiohttp"
        with self._asked():
            self._fs, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False)

    def listing(self) -> dict[str, dict[str, Any]]:
        """What the store tells of each file of a library's names, or of the one that is a pack, under no name."""
        with self._asked():
            told = self._fs.info(self._path)
            if told["type"] == "file":
                return {"": _identity(told)}
            if self._web:
                raise LibraryError(f"{self.url} is no file: over HTTP give the URL of what `sac pack` wrote")
            entries = self._fs.ls(self._path, detail=True)
        if len(entries) > ENTRIES:
            raise LibraryUnsafe(f"{self.url} holds {len(entries):,} files; no library has more than {ENTRIES:,}")
        own = {str(e["name"]).rpartition("/")[2]: e for e in entries if e["type"] == "file"}
        found = {name: _identity(told) for name, told in sorted(own.items()) if files.is_stored(name)}
        if files.CATALOG not in found:
            raise LibraryNotFound(f"no library at {self.url}: there is no {files.CATALOG}")
        return found

    @staticmethod
    def is_known(listing: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the store tells more of each file than its size: else a change is not seen, and nothing is kept."""
        return all(len(told) > 1 for told in listing.values())

    def fetch(self, listing: Mapping[str, Mapping[str, Any]], target: Path) -> None:
        """Make a copy, checked as a library of others is; nothing is there before it is whole."""
        from sac_rag.library.checks import problems
        from sac_rag.library.pack import unpack

        place = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))  # mode 0700
        try:
            size = sum(told["size"] for told in listing.values())
            if size > (free := shutil.disk_usage(place).free):
                raise LibraryError(f"{self.url} has {size:,} bytes and {place.parent} {free:,} left: make room")
            for name, told in listing.items():
                self._get(f"{self._path}/{name}" if name else self._path, place / (name or "pack"), told["size"])
            if "" in listing:
                unpack(place / "pack", target)
                return
            files.sync(place)
            if wrong := problems(place, deep=False):
                raise LibraryCorrupt(f"{self.url} holds no sound library: {wrong[0]}")
            os.rename(place, target)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _get(self, path: str, to: Path, size: int) -> None:
        with self._asked(), self._fs.open(path, "rb") as data, open(to, "xb", opener=_private) as out:
            left = size
            while block := data.read(min(CHUNK, left + 1)):
                left -= len(block)
                if left < 0:
                    break
                out.write(block)
        if left:
            raise LibraryCorrupt(f"{self.url}: {to.name} has not the {size:,} bytes that were told; try again")

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """What a store, or its package, answers with as errors of ours."""
        try:
            yield
        except SacError:
            raise
        except FileNotFoundError:
            raise LibraryNotFound(f"no library at {self.url}") from None
        except Exception as error:  # each store has errors of its own
            raise LibraryError(f"cannot read {self.url}: {type(error).__name__}: {error}") from error


def _identity(told: Mapping[str, Any]) -> dict[str, Any]:
    size = told.get("size")
    if not isinstance(size, int) or size < 0:
        raise LibraryError(f"the store tells no size of {told.get('name')!r}: a library is not read from there")
    found = {key: str(value) for key, value in told.items() if key.lower() in IDENTITY and value is not None}
    return {**found, "size": size}


def _version(listing: Mapping[str, Mapping[str, Any]]) -> str:
    if not _Store.is_known(listing):
        return uuid.uuid4().hex
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()[:32]


def _copies(root: Path) -> list[Path]:
    """Copies of one URL, that used last first."""
    found = [p for p in root.glob("[0-9a-f]*") if p.is_dir()]
    used: Callable[[Path], float] = lambda p: p.stat().st_mtime  # noqa: E731
    return sorted(found, key=used, reverse=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
