"""Listening: libraries opened, the address bound, and an orderly end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

import uvicorn
from fastapi import FastAPI

from sac_rag.errors import ConfigError
from sac_rag.pipeline import SacRag
from sac_rag.places import places_of
from sac_rag.remote import is_remote
from sac_rag.serve.app import create_app
from sac_rag.serve.connections import protocol
from sac_rag.serve.keys import Keys
from sac_rag.serve.libraries import ServedLibraries, ServedLibrary, named
from sac_rag.serve.settings import ServeConfig
from sac_rag.serve.tracing import Tracing


def open_libraries(
    libraries: Sequence[str],
    folders: Sequence[str] = (),
    *,
    write: bool = True,
    device: str = "auto",
    dtype: str = "auto",
) -> ServedLibraries:
    """Open libraries, for reading until the first change. folders: `NAME=FOLDER` or, of one library, `FOLDER`.

    Raises ConfigError for names that are none, and as `SacRag.open` does.
    """
    places = named(libraries)
    wanted = _folders(folders, list(places))
    opened: list[ServedLibrary] = []
    try:
        for name, folder in places.items():
            mine = write and not is_remote(folder) and len(places_of(folder)) == 1
            rag = SacRag.open(folder, write=mine, later=mine, device=device, dtype=dtype)
            opened.append(ServedLibrary(name, rag, tuple(wanted.get(name, ()))))
    except BaseException:
        ServedLibraries(opened).close()
        raise
    return ServedLibraries(opened)


def _folders(folders: Sequence[str], names: Sequence[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in folders:
        name, sign, folder = entry.partition("=")
        if name not in names or not sign:
            if len(names) != 1:
                raise ConfigError(f"--folder is {entry!r}; write NAME=FOLDER with one of {', '.join(names)}")
            name, folder = names[0], entry
        found.setdefault(name, []).append(folder)
    return found


def serve(
    libraries: ServedLibraries,
    limits: ServeConfig,
    keys: Keys | None = None,
    *,
    told: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until the process is told to stop (Ctrl-C, SIGTERM); answers under way get `grace` seconds.

    told: called with the address when it listens. Raises ConfigError where it may not, or cannot, listen.
    """
    limits.check_reach(keys=keys is not None)
    if keys is not None:
        keys.of_libraries(list(libraries))
    listening = bound(limits)
    host, port = listening.getsockname()[:2]
    told(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    tracing = Tracing.exporting(texts=limits.otel_texts) if limits.otel else None
    server_of(create_app(libraries, limits, keys, tracing), limits).run(sockets=[listening])


def server_of(app: FastAPI, limits: ServeConfig) -> uvicorn.Server:
    """What serves an application at a socket, within these limits."""
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(limits.grace)),
        lifespan="on",
    )
    return uvicorn.Server(config)


def bound(limits: ServeConfig) -> socket.socket:
    """A socket that listens at the settings' address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            limits.host, limits.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        raise ConfigError(f"cannot listen on {limits.host}:{limits.port}: {error.strerror or error}") from None
    return listening
