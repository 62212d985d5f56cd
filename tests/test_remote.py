"""Libraries in object stores: the same answers by way of a copy, and stores whose content is hostile or changes."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import itertools
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason='stores are an extra: pip install "sac-rag[object-store]"')
import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from sac_rag import SacRag, remote
from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError, LibraryNotFound, LibraryUnsafe, SacError
from sac_rag.library.pack import pack
from sac_rag.records import Document

TEXTS = {"canal": "The Erie Canal spans 363 miles.", "tides": "Tides follow the Moon."}
_buckets = itertools.count()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAC_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def library(tiny_config: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "a.lib"
    with SacRag.open(folder, config=tiny_config, write=True, create=True) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
    return folder


@pytest.fixture
def store() -> Any:
    """A store in memory, with a bucket of this test's own under `.bucket`."""
    fs = fsspec.filesystem("memory")
    fs.bucket = f"bucket{next(_buckets)}"
    yield fs
    fs.rm(f"/{fs.bucket}", recursive=True)


def upload(store: Any, folder: Path, name: str = "a.lib") -> str:
    for file in folder.iterdir():
        store.pipe_file(f"/{store.bucket}/{name}/{file.name}", file.read_bytes())
    return f"memory://{store.bucket}/{name}"


def says(library: Any) -> str:
    with SacRag.open(library) as rag:
        assert rag.library.verify() == []
        return rag.ask("How long is the canal?", max_new_tokens=6).text


def test_a_folder_answers_as_it_does_here(store: Any, library: Path, cache: Path) -> None:
    url = upload(store, library)
    store.pipe_file(f"/{store.bucket}/a.lib/notes.txt", b"none of a library's")
    assert says(url) == says(library)
    copy = remote.copy_of(url)
    assert copy.is_relative_to(cache) and copy.stat().st_mode & 0o777 == 0o700
    assert {p.name for p in copy.iterdir()} == {p.name for p in library.iterdir()} - {"writer.lock"}
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in copy.iterdir())
    assert remote.copy_of(url) == copy


def test_a_pack_answers_too(store: Any, library: Path, tmp_path: Path) -> None:
    pack(library, tmp_path / "a.pack")
    store.pipe_file(f"/{store.bucket}/a.pack", (tmp_path / "a.pack").read_bytes())
    url = f"memory://{store.bucket}/a.pack"
    assert says(url) == says(library)
    assert not list(remote.copy_of(url).parent.glob(".*"))


def test_nothing_is_fetched_twice(store: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(store, library)
    first = remote.copy_of(url)
    monkeypatch.setattr(remote._Store, "fetch", lambda *_: pytest.fail("fetched again"))
    assert remote.copy_of(url) == first


def test_what_has_changed_is_fetched(store: Any, library: Path) -> None:
    url, seen = upload(store, library), []
    for number in range(4):
        seen.append(remote.copy_of(url))
        with SacRag.open(seen[-1]) as rag:
            assert len(rag.library.documents()) == 2 + number
        with SacRag.open(library, write=True) as rag:
            rag.put([Document(f"new {number}", f"Something new was found in {1900 + number}.")])
        store.rm(f"/{store.bucket}/a.lib", recursive=True)
        upload(store, library)
    assert len(set(seen)) == 4
    assert [p for p in seen if p.exists()] == seen[-2:]  # that in use, and one that somebody may still be reading


def test_a_library_that_changes_while_it_is_fetched(store: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(store, library)
    fetch, times = remote._Store.fetch, []

    def slow(self: Any, *args: Any) -> None:
        fetch(self, *args)
        times.append(1)
        if len(times) <= often:
            store.pipe_file(f"/{store.bucket}/a.lib/catalog.sqlite", (library / "catalog.sqlite").read_bytes())

    monkeypatch.setattr(remote._Store, "fetch", slow)
    often = 1
    assert remote.copy_of(url).exists() and len(times) == 2
    store.pipe_file(f"/{store.bucket}/a.lib/catalog.sqlite", (library / "catalog.sqlite").read_bytes())
    times.clear()
    often = 9
    with pytest.raises(LibraryError, match="changed 3 times while it was fetched"):
        remote.copy_of(url)


def test_without_network_the_copy_serves(store: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(store, library)
    monkeypatch.setenv("SAC_OFFLINE", "1")
    with pytest.raises(LibraryError, match="no copy of memory://"):
        SacRag.open(url)
    monkeypatch.delenv("SAC_OFFLINE")
    copy = remote.copy_of(url)
    store.rm(f"/{store.bucket}/a.lib", recursive=True)
    store.mkdir(f"/{store.bucket}")
    with pytest.raises(LibraryNotFound):
        SacRag.open(url)
    monkeypatch.setenv("SAC_OFFLINE", "1")
    assert remote.copy_of(url) == copy
    assert says(url)


def test_only_reading(store: Any, library: Path, tiny_config: Any) -> None:
    url = upload(store, library)
    for how in ({"write": True}, {"create": True}, {"write": True, "later": True}):
        with pytest.raises(ConfigError, match="nothing is changed"):
            SacRag.open(url, config=tiny_config, **how)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "local:///etc",
        "reference://x",
        "zip://a.lib::memory://bucket/x.zip",
        "simplecache::memory://bucket/a.lib",
        "memory://bucket/a.lib::file:///etc",
        "github://owner:name@/a.lib",
        "ftp://somewhere/a.lib",
        "s3://bucket/s3://other",
        "://a.lib",
    ],
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is in no store that is read"):
        remote.copy_of(url)


def test_a_store_whose_package_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "s3fs" else found(name, *a))
    with pytest.raises(ConfigError, match="needs the package s3fs: pip install s3fs"):
        remote.copy_of("s3://bucket/a.lib")


def test_a_folder_without_a_library(store: Any) -> None:
    store.pipe_file(f"/{store.bucket}/a.lib/notes.txt", b"x")
    with pytest.raises(LibraryNotFound, match=r"there is no catalog\.sqlite"):
        remote.copy_of(f"memory://{store.bucket}/a.lib")
    with pytest.raises(LibraryNotFound):
        remote.copy_of(f"memory://{store.bucket}/nothing")


def refused(url: str, cache: Path, kind: type[SacError] = LibraryError) -> str:
    with pytest.raises(kind) as caught:
        remote.copy_of(url)
    left = [p for p in (cache / "libraries").rglob("*") if p.name != "lock" and not p.is_dir()]
    assert left == []
    return str(caught.value)


def test_damaged_content_is_refused(store: Any, library: Path, cache: Path) -> None:
    url = upload(store, library)
    whole = (library / "catalog.sqlite").read_bytes()
    path = f"/{store.bucket}/a.lib/catalog.sqlite"
    for bad in (b"", b"SQLite format 3\0", whole[: len(whole) // 2], bytes(len(whole))):
        store.pipe_file(path, bad)
        refused(url, cache)
    store.pipe_file(path, whole)
    (segment,) = library.glob("seg-*")
    store.rm(f"/{store.bucket}/a.lib/{segment.name}")
    assert "no sound library" in refused(url, cache, LibraryCorrupt)
    store.pipe_file(f"/{store.bucket}/a.lib/{segment.name}", segment.read_bytes())
    assert says(url) == says(library)


def test_damaged_packs_are_refused(store: Any, library: Path, tmp_path: Path, cache: Path) -> None:
    import zipfile

    pack(library, tmp_path / "a.pack")
    with zipfile.ZipFile(tmp_path / "a.pack", "a") as archive:
        archive.writestr("../../evil", b"x")
    store.pipe_file(f"/{store.bucket}/a.pack", (tmp_path / "a.pack").read_bytes())
    assert "no file of a library" in refused(f"memory://{store.bucket}/a.pack", cache, LibraryUnsafe)
    assert not (tmp_path / "evil").exists() and not (cache / "evil").exists()


class Lying(MemoryFileSystem):
    """A store that tells other names and sizes than it has."""

    names: dict[str, str] = {}  # noqa: RUF012
    sizes: dict[str, Any] = {}  # noqa: RUF012

    def ls(self, path: str, detail: bool = True, **how: Any) -> Any:
        found = []
        for entry in super().ls(path, detail=True, **how):
            name = entry["name"].rpartition("/")[2]
            found.append({**entry, "name": self.names.get(name, entry["name"]), **self.sizes.get(name, {})})
        return found


@pytest.fixture
def lying(store: Any, monkeypatch: pytest.MonkeyPatch) -> type[Lying]:
    made = type("LyingNow", (Lying,), {"names": {}, "sizes": {}, "cachable": False})
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **_: (made(), "/" + url.partition("://")[2]))
    return made


def test_names_of_a_store_lead_nowhere(store: Any, lying: Any, library: Path, cache: Path, tmp_path: Path) -> None:
    url = upload(store, library)
    (tmp_path / "outside").mkdir()
    for name in ("../../outside/seg-7.safetensors", "/outside/seg-7.safetensors", "seg-7.safetensors/..", "seg-7\0"):
        lying.names["notes.txt"] = name
        store.pipe_file(f"/{store.bucket}/a.lib/notes.txt", b"x")
        with contextlib.suppress(LibraryError):  # what is under such a name is not there
            remote.copy_of(url)
        assert not list((tmp_path / "outside").iterdir())
        shutil.rmtree(cache)


@pytest.mark.parametrize("size", [0, 10, 10**9, -1, None, "12", 2**62])
def test_sizes_of_a_store_are_not_believed(store: Any, lying: Any, library: Path, cache: Path, size: Any) -> None:
    url = upload(store, library)
    lying.sizes["catalog.sqlite"] = {"size": size}
    refused(url, cache)


def test_too_many_files(store: Any, lying: Any, library: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(store, library)
    monkeypatch.setattr(remote, "ENTRIES", 2)
    assert "no library has more than 2" in refused(url, cache, LibraryUnsafe)


def test_a_store_that_tells_sizes_alone_is_read_anew(store: Any, lying: Any, library: Path) -> None:
    url = upload(store, library)
    lying.sizes = {p.name: {"created": None, "size": p.stat().st_size} for p in library.iterdir()}
    first, second = remote.copy_of(url), remote.copy_of(url)
    assert first != second and says(url) == says(library)


def test_two_at_once_make_one_copy(store: Any, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = upload(store, library)
    fetch, times = remote._Store.fetch, []
    monkeypatch.setattr(remote._Store, "fetch", lambda *a: (times.append(1), fetch(*a))[1])
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(remote.copy_of(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1 and len(set(found)) == 1 and len(found) == 4


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The folder `web` over HTTP."""
    (tmp_path / "web").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_over_http(served: str, library: Path, tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec's HTTP needs aiohttp")
    pack(library, tmp_path / "web/a.pack")
    assert says(f"{served}/a.pack") == says(library)
    first = remote.copy_of(f"{served}/a.pack")
    assert remote.copy_of(f"{served}/a.pack") == first
    with pytest.raises(LibraryNotFound):
        remote.copy_of(f"{served}/b.pack")


def test_the_command_line_reads_by_url(store: Any, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sac_cli.main import run

    url = upload(store, library)
    for command in (["ls"], ["info"], ["verify"], ["export"], ["ask", "How long?", "--max-new-tokens", "2"]):
        assert run([*command, "--library", url]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "canal" in out and "Tides follow the Moon." in out
    assert run(["rm", "canal", "--library", url]) == 3
    assert run(["add", str(library / "catalog.sqlite"), "--library", url]) == 2
