"""Where a warm process listens, and that nobody but its user does: folder 0700, owners, credentials of the peer."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import struct
import sys
import warnings
from pathlib import Path

from sac_rag import __version__
from sac_rag.errors import ConfigError
from sac_rag.models.cache import cache_root
from sac_rag.models.notes import version_of
from sac_rag.places import places_of

PROTOCOL = 2
LONGEST = 100
"""Bytes of a socket's path that every system takes."""


def runtime_folder(*, make: bool = False) -> Path:
    """The folder of the sockets of this user: private, and nobody else's to replace.

    Raises ConfigError where it is not, and on systems that do not say who is at the other end of a socket; OSError
    where it is not there.
    """
    import platformdirs

    if not hasattr(socket, "SO_PEERCRED"):
        raise ConfigError("a warm process needs Linux: elsewhere a socket does not say whose process asks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder that others may enter: it is passed over
        folder = Path(platformdirs.user_runtime_dir("sac-rag"))
    if make:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine, above, link = os.lstat(folder), os.stat(folder.parent), os.lstat(folder.parent)
    if not stat.S_ISDIR(mine.st_mode) or mine.st_uid != os.geteuid() or mine.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is not a folder that you alone can enter (owner {mine.st_uid}, mode {mine.st_mode & 0o7777:o}): "
            "remove it, or set XDG_RUNTIME_DIR"
        )
    owners = {above.st_uid, link.st_uid}  # somebody else's link would lead elsewhere between two looks
    if owners - {0, os.geteuid()} or (above.st_mode & 0o022 and not above.st_mode & stat.S_ISVTX):
        raise ConfigError(f"{folder.parent} can be changed by others: set XDG_RUNTIME_DIR to a folder of your own")
    return folder


def socket_of(library: str | os.PathLike[str], device: str, dtype: str, *, make: bool = False) -> Path:
    """The socket of the process that serves a library so: another version, cache or setting has another one.

    Raises as `runtime_folder`; ConfigError for a folder whose path is too long for sockets.
    """
    key = [PROTOCOL, __version__, version_of("torch"), version_of("transformers"), sys.prefix, str(cache_root())]
    places = [os.path.realpath(place) for place in places_of(library)]
    name = hashlib.sha256(json.dumps([*key, places, device, dtype]).encode()).hexdigest()[:24]
    path = runtime_folder(make=make) / f"{name}.sock"
    if len(os.fsencode(path)) > LONGEST:
        raise ConfigError(f"{path} is too long for a socket: set XDG_RUNTIME_DIR to a shorter path")
    return path


def is_mine(path: Path) -> bool:
    """Whether a path is a socket of this user."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()


def peer_uid(connection: socket.socket) -> int:
    """The user whose process is at the other end."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end; 0 where it cannot be seen from here."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """(process, user, group), as the system knows them."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def connect(path: Path, timeout: float) -> socket.socket | None:
    """A connection to the process of this user that listens there; None where there is none, or it takes none."""
    if not is_mine(path):
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(str(path))
        if peer_uid(connection) == os.geteuid():
            return connection
    except OSError:
        pass
    connection.close()
    return None
