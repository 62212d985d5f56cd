"""Nobody but the user can listen for his questions, or ask his library."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.warm import place
from sac_rag.warm.client import Warm
from sac_rag.warm.server import Server

SETTINGS = ("my.lib", "cpu", "float32")


def never() -> None:
    raise AssertionError


def test_the_folder_is_private(runtime: Path) -> None:
    folder = place.socket_of(*SETTINGS, make=True).parent
    found = os.lstat(folder)
    assert folder == runtime / "sac-rag"
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_enter_is_refused(runtime: Path, mode: int) -> None:
    folder = place.socket_of(*SETTINGS, make=True).parent
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="you alone can enter"):
        place.socket_of(*SETTINGS, make=True)
    assert Warm.at(*SETTINGS, never) is None


def test_a_link_in_its_place_is_refused(runtime: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (runtime / "sac-rag").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="you alone can enter"):
        place.socket_of(*SETTINGS, make=True)


def test_a_parent_that_others_change_is_refused_unless_it_is_sticky(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.user_runtime_dir", lambda name: str(runtime / name))
    runtime.chmod(0o777)
    with pytest.raises(ConfigError, match="can be changed by others"):
        place.socket_of(*SETTINGS, make=True)
    runtime.chmod(0o1777)
    assert place.socket_of(*SETTINGS, make=True).parent.is_dir()


def test_nothing_is_made_by_looking(runtime: Path) -> None:
    assert Warm.at(*SETTINGS, never) is None
    assert list(runtime.iterdir()) == []


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's files are made by root alone")


@needs_root
@pytest.mark.parametrize("which", ["folder", "parent"])
def test_folders_of_another_user_are_refused(runtime: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_runtime_dir", lambda name: str(runtime / name))
    folder = place.socket_of(*SETTINGS, make=True).parent
    os.chown(folder if which == "folder" else runtime, 12345, 12345)
    with pytest.raises(ConfigError):
        place.socket_of(*SETTINGS)
    assert Warm.at(*SETTINGS, never) is None


@needs_root
def test_a_parent_that_is_somebody_elses_link_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it lies a good folder now, and another one between the look and the bind."""
    (runtime / "theirs").symlink_to(runtime, target_is_directory=True)
    monkeypatch.setattr("platformdirs.user_runtime_dir", lambda name: str(runtime / "theirs" / name))
    assert place.socket_of(*SETTINGS, make=True).parent.is_dir()  # a link of one's own is one's own
    os.chown(runtime / "theirs", 12345, 12345, follow_symlinks=False)
    with pytest.raises(ConfigError, match="can be changed by others"):
        place.socket_of(*SETTINGS)
    assert Warm.at(*SETTINGS, never) is None


@needs_root
def test_a_socket_of_another_user_is_refused(runtime: Path) -> None:
    path = place.socket_of(*SETTINGS, make=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert place.is_mine(path)
        os.chown(path, 12345, 12345)
        assert not place.is_mine(path)
        assert place.connect(path, 1.0) is None


@needs_root
def test_a_process_of_another_user_at_the_other_end_is_refused(runtime: Path) -> None:
    """Its socket may have been given away: what counts is who listens."""
    path = place.socket_of(*SETTINGS, make=True)
    code = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])\n"
        "os.setuid(12345); s.listen(); print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        assert place.is_mine(path)
        assert place.connect(path, 5.0) is None
    finally:
        child.communicate()


def test_a_client_of_another_user_is_not_heard(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rag:
        def is_current(self) -> bool:
            raise AssertionError("it was heard")

    path = place.socket_of(*SETTINGS, make=True)
    server = Server(Rag(), path, 0.5)  # type: ignore[arg-type]
    monkeypatch.setattr("sac_rag.warm.server.peer_uid", lambda connection: os.geteuid() + 1)
    thread = threading.Thread(target=server.run)
    thread.start()
    connection = place.connect(path, 5.0)
    assert connection is not None
    with connection:
        connection.sendall(b'{"stop": true}\n')
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert not server._ended.is_set()
    thread.join(30)
    assert not thread.is_alive()


def test_systems_without_credentials_have_no_warm_process(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    with pytest.raises(ConfigError, match="Linux"):
        place.socket_of(*SETTINGS, make=True)
    assert Warm.at(*SETTINGS, never) is None


def test_a_path_too_long_for_a_socket_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_runtime_dir", lambda name: str(runtime / ("x" * 90) / name))
    with pytest.raises(ConfigError, match="too long"):
        place.socket_of(*SETTINGS, make=True)
