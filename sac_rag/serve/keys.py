"""Who may do what: keys, their rights, and the part of the libraries that is theirs."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import stat
import tomllib
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.errors import ConfigError
from sac_rag.library.filters import DOCUMENT, example, fitting

MOST_MEMBERS = 1000
RIGHTS = ("read", "write")
SHORTEST = 16
"""Characters that a key has at least."""


@dataclass(frozen=True)
class Key:
    """One client, or all of them where there are no keys.

    where: a metadata filter; nothing else is found, read, listed, changed or removed by this key.
    """

    name: str
    rights: frozenset[str]
    libraries: frozenset[str] | None = None
    """Names of the libraries that it may use; None for all."""
    where: Mapping[str, Any] | None = None

    def fits(self, uri: str, meta: Mapping[str, Any]) -> bool:
        """Whether a document is this key's."""
        return fitting(self.where)(ChainMap({DOCUMENT: uri}, meta, {"document": uri}))  # type: ignore[arg-type]

    def owns(self, uri: str, meta: Mapping[str, Any]) -> bool:
        """Whether a document is this key's by each member of its lists: by another one it would be in the part of
        another key. Of lists that the filter looks at no more than MOST_MEMBERS are taken."""
        looked_at = {name: value for name, value in meta.items() if name in _names(self.where or {})}
        alone = list(itertools.islice(_singled(looked_at), MOST_MEMBERS + 1))
        return len(alone) <= MOST_MEMBERS and all(self.fits(uri, ChainMap(one, meta)) for one in ({}, *alone))  # type: ignore[arg-type]

    @property
    def mark(self) -> dict[str, Any]:
        """Metadata that make a document this key's; empty where it has no filter or one that does not say."""
        return example(self.where) or {}


EVERYBODY = Key("everybody", frozenset(RIGHTS))
"""Who asks a server without keys."""


class Keys:
    """The keys of a file, by the SHA-256 of their secret."""

    def __init__(self, keys: Sequence[tuple[bytes, Key]]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """A TOML file with a table [[keys]] for each: name, key (or sha256 of it), rights, libraries, where.

        Raises ConfigError naming what is wrong, also for a file that others than its owner can read.
        """
        try:
            with open(path, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no TOML: {error}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path} holds keys and others than its owner can open it: chmod 600 {path}")
        tables = content.get("keys")
        if set(content) != {"keys"} or not isinstance(tables, list) or not tables:
            raise ConfigError(f"{path} must hold tables [[keys]] and nothing else, one for each key")
        found = [_entry(path, number, table) for number, table in enumerate(tables, 1)]
        names = [key.name for _, key in found]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ConfigError(f"{path} has two keys of the name {twice!r}: metrics and limits go by names")
        if len({secret for secret, _ in found}) < len(found):
            raise ConfigError(f"{path} has one secret twice: which name it stands for would be a matter of chance")
        return cls(found)

    def holder(self, secret: str) -> Key | None:
        """Whose secret this is. All are compared, each in constant time."""
        given, found = hashlib.sha256(secret.encode()).digest(), None
        for digest, key in self._keys:
            if hmac.compare_digest(digest, given):
                found = key
        return found

    def of_libraries(self, names: Sequence[str]) -> None:
        """Raises ConfigError where a key names a library that is not served."""
        for _, key in self._keys:
            if unknown := sorted((key.libraries or frozenset()) - set(names)):
                raise ConfigError(f"key {key.name!r} is for library {unknown[0]!r}; served are {', '.join(names)}")


def _singled(meta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each member of a list alone, also of nested ones, under the list's name."""
    for name, value in meta.items():
        if isinstance(value, list):
            yield from ({name: one} for one in value)
        elif isinstance(value, dict):
            yield from ({name: ChainMap(one, value)} for one in _singled(value))


def _names(where: Mapping[str, Any]) -> set[str]:
    """Keys of metadata that a filter looks at; of one with dots also its beginning."""
    found: set[str] = set()
    for key, wanted in where.items():
        if key in ("$and", "$or", "$not"):
            found.update(*(_names(part) for part in (wanted if isinstance(wanted, list) else [wanted])))
        else:
            found |= {key, key.partition(".")[0]}
    return found


_FIELDS = {"name", "key", "sha256", "rights", "libraries", "where"}


def _entry(path: str | Path, number: int, table: Any) -> tuple[bytes, Key]:
    place = f"key {number} of {path}"
    if not isinstance(table, dict) or (set(table) - _FIELDS):
        extra = sorted(set(table) - _FIELDS) if isinstance(table, dict) else table
        raise ConfigError(f"{place} has {extra!r}; known are {', '.join(sorted(_FIELDS))}")
    name, rights, libraries = table.get("name"), table.get("rights", ["read"]), table.get("libraries")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{place} has no name")
    if not _texts(rights) or not rights or set(rights) - set(RIGHTS):
        raise ConfigError(f"rights of {place} are {rights!r}; give some of {', '.join(RIGHTS)}")
    if libraries is not None and not (_texts(libraries) and libraries):
        raise ConfigError(f"libraries of {place} are {libraries!r}; give names, or leave it out for all")
    where = table.get("where")
    if where is not None and (not isinstance(where, dict) or not where):
        raise ConfigError(f"where of {place} is {where!r}; give a metadata filter, or leave it out for everything")
    fitting(where)
    mine = None if libraries is None else frozenset(libraries)
    return _digest(place, table), Key(name, frozenset(rights), mine, where)


def _digest(place: str, table: Mapping[str, Any]) -> bytes:
    if ("key" in table) == ("sha256" in table):
        raise ConfigError(f"{place} needs either `key`, the secret, or `sha256`, its SHA-256 in hex digits")
    if "key" in table:
        secret = table["key"]
        if not isinstance(secret, str) or len(secret) < SHORTEST or not secret.isascii() or not secret.isprintable():
            raise ConfigError(f"`key` of {place} must have {SHORTEST} printable ASCII characters or more")
        return hashlib.sha256(secret.encode()).digest()
    try:
        digest = bytes.fromhex(table["sha256"])
    except (TypeError, ValueError):
        digest = b""
    if len(digest) != 32:
        raise ConfigError(f"`sha256` of {place} must be 64 hex digits")
    return digest


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, str) for v in values)
