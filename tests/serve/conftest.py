"""Live servers over a library of short documents on tiny random models."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='serving is an extra: pip install "sac-rag[serve]"')
pytest.importorskip("uvicorn", reason='serving is an extra: pip install "sac-rag[serve]"')

import httpx
import uvicorn

from sac_rag import SacRag
from sac_rag.records import Document
from sac_rag.serve.app import create_app
from sac_rag.serve.keys import Keys
from sac_rag.serve.libraries import ServedLibraries, ServedLibrary
from sac_rag.serve.run import bound, server_of
from sac_rag.serve.settings import ServeConfig

TEXTS = {
    "tides.md": "The tides follow the Moon. Spring tides come when the Sun and the Moon are lined up.",
    "canal.md": "The Erie Canal spans 363 miles. It joins the Hudson to the Great Lakes.",
    "bridge.md": "Emily Roebling crossed the Brooklyn Bridge first. She carried a rooster.",
}
TEAMS = {"tides.md": "sea", "canal.md": "land", "bridge.md": "land"}
SECRETS = {"all": "secret-of-all-0001", "sea": "secret-of-sea-0001", "looks": "secret-of-looks-01"}
KEYS = f"""
[[keys]]
name = "all"
key = "{SECRETS["all"]}"
rights = ["read", "write"]

[[keys]]
name = "sea"
key = "{SECRETS["sea"]}"
rights = ["read", "write"]
where = {{ team = "sea" }}

[[keys]]
name = "looks"
key = "{SECRETS["looks"]}"
libraries = ["three"]
"""


@dataclass
class Live:
    """A server under way."""

    url: str
    rag: SacRag
    app: Any
    server: uvicorn.Server

    def client(self, key: str | None = None, **settings: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {SECRETS.get(key, key)}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **settings)

    @property
    def pool(self) -> Any:
        return self.app.state.served.pool


@contextlib.contextmanager
def served(
    rag: SacRag, keys: Keys | None = None, folders: tuple[str, ...] = (), tracing: Any = None, **settings: Any
) -> Iterator[Live]:
    limits = ServeConfig(port=0, **{"grace": 60.0, **settings})
    app = create_app(ServedLibraries([ServedLibrary("three", rag, folders)]), limits, keys, tracing)
    listening = bound(limits)
    server = server_of(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield Live(f"http://127.0.0.1:{listening.getsockname()[1]}", rag, app, server)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def wait_for(true: Callable[[], bool], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def three(tiny_config: Any, tmp_path: Path) -> Path:
    """A library of three documents."""
    folder = tmp_path / "three.lib"
    with SacRag.open(folder, config=tiny_config, write=True, create=True) as opened:
        opened.put([Document(uri, text, meta={"team": TEAMS[uri]}) for uri, text in TEXTS.items()])
    return folder


@pytest.fixture
def open_rag(three: Path) -> SacRag:
    return SacRag.open(three, write=True, later=True)


@pytest.fixture
def live(open_rag: SacRag) -> Iterator[Live]:
    with served(open_rag) as found:
        yield found


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(KEYS)
    path.chmod(0o600)
    return path


@pytest.fixture
def guarded(open_rag: SacRag, key_file: Path) -> Iterator[Live]:
    with served(open_rag, Keys.read(key_file)) as found:
        yield found
