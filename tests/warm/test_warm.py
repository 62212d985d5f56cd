"""A warm process answers as a cold one does; where it cannot, the cold one answers and nobody notices."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sac_rag import AskConfig, SacRag
from sac_rag.errors import ConfigError, LibraryNotFound, ModelError, SacError
from sac_rag.records import Answer
from sac_rag.warm import client, place
from sac_rag.warm.client import Warm
from sac_rag.warm.server import Server, sweep

ASK = AskConfig(max_new_tokens=8, k=2)
SETTINGS = ("cpu", "float32")
MET = b'{"pid": 7}\n'
"""The first word of a warm process."""


def never() -> SacRag:
    raise AssertionError("the library was opened in this process")


def same(found: Answer, wanted: Answer) -> None:
    """Equal but for their times and, in fp32, the last bits of what tokens that were read together are given."""
    own = {"timings": 0, "confidence": 0}
    assert found.account() | own == wanted.account() | own
    assert found.confidence == pytest.approx(wanted.confidence, abs=1e-4)
    assert [h.passage for h in found.sources] == [h.passage for h in wanted.sources]


@pytest.fixture
def rag(library: str) -> Iterator[SacRag]:
    with SacRag.open(library, device="cpu", dtype="float32") as opened:
        yield opened


@pytest.fixture
def serving(rag: SacRag, library: str, runtime: Path) -> Iterator[Server]:
    """A server in a thread of this process."""
    server = Server(rag, place.socket_of(library, *SETTINGS, make=True), 60.0)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.end()
    thread.join(30)
    assert not thread.is_alive()


def found(library: str, cold: Callable[[], SacRag] = never) -> Warm:
    warm = Warm.at(library, *SETTINGS, cold)
    assert warm is not None
    return warm


def test_a_warm_answer_is_the_cold_one(serving: Server, rag: SacRag, library: str) -> None:
    warm = found(library)
    for text in (False, True):
        same(warm.ask("Who planted the elm?", ASK, text=text), rag.ask("Who planted the elm?", ASK, text=text))
    if importlib.util.find_spec("llguidance"):  # the extra `tools`
        held = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
        long = replace(ASK, max_new_tokens=40)
        fitting = warm.ask("Who planted the elm?", long, schema=held)
        assert set(json.loads(fitting.text)) == {"sure"}
        same(fitting, rag.ask("Who planted the elm?", long, schema=held))
    stream = warm.stream("Who planted the ash?", ASK)
    wanted = rag.ask("Who planted the ash?", ASK)
    assert "".join(stream) == wanted.text
    same(stream.answer, wanted)


def test_filters_and_errors_pass_through(serving: Server, rag: SacRag, library: str) -> None:
    warm, document = found(library), rag.library.documents()[0].uri
    hit = warm.ask("Who?", ASK, where={"$document": document})
    assert {h.passage.document for h in hit.sources} == {document}
    with pytest.raises(ConfigError, match="lower max_new_tokens"):
        warm.ask("Who?", AskConfig(max_new_tokens=10**6))


def test_a_reranker_in_a_folder_is_this_processs(
    serving: Server, rag: SacRag, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm process has another working folder, in which the same path may lead to another model."""
    (tmp_path / "owner" / "reranker").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked: list[Any] = []

    def cold() -> Any:
        return SimpleNamespace(stream=lambda question, ask, **given: asked.append(ask.rerank))

    for name in ("owner/reranker", "./owner/reranker", str(tmp_path / "owner" / "reranker")):
        found(library, cold).stream("Who?", replace(ASK, rerank=name))
        assert asked.pop() == name
    with pytest.raises(ModelError, match="owner/of-the-hub"):  # which the warm process says
        found(library, cold).ask("Who?", replace(ASK, rerank="owner/of-the-hub"))
    assert not asked


def test_it_answers_from_the_newest_generation(serving: Server, rag: SacRag, library: str) -> None:
    warm = found(library)
    before = {h.passage.document for h in warm.ask("Who planted the elm?", AskConfig(k=9, max_new_tokens=1)).sources}
    with SacRag.open(library, write=True, device="cpu", dtype="float32") as writer:
        gone = next(d.uri for d in writer.library.documents() if "elm" in d.uri)
        writer.remove([gone])
    after = {h.passage.document for h in warm.ask("Who planted the elm?", AskConfig(k=9, max_new_tokens=1)).sources}
    assert gone in before and after == before - {gone}


def test_other_settings_and_versions_do_not_find_it(
    serving: Server, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Warm.at(library, "cpu", "bfloat16", never) is None
    assert Warm.at(library + "-other", *SETTINGS, never) is None
    monkeypatch.setattr(place, "__version__", "0.0.0")
    assert Warm.at(library, *SETTINGS, never) is None


def test_the_library_is_known_by_any_of_its_names(
    serving: Server, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(library)
    monkeypatch.chdir(Path(library).parent)
    for name in (tmp_path / "link", Path(library).name):
        assert Warm.at(str(name), *SETTINGS, never) is not None


def test_several_libraries_are_one_in_their_order(
    rag: SacRag, library: str, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(library, tmp_path / "copy.lib")
    monkeypatch.chdir(tmp_path)
    both = f"{library},copy.lib"
    pid = client.start(both, *SETTINGS, 30.0)
    try:
        warm = found(f"{os.path.relpath(library)},./copy.lib")
        with SacRag.open(both, device="cpu", dtype="float32") as cold:
            same(warm.ask("Who planted the elm?", ASK), cold.ask("Who planted the elm?", ASK))
        for other in (library, f"copy.lib,{library}", "copy.lib"):
            assert Warm.at(other, *SETTINGS, never) is None
    finally:
        assert client.stop(both, *SETTINGS) == "ended"
        os.waitpid(pid, 0)


def test_what_has_changed_on_disk_is_for_a_cold_process(
    serving: Server, rag: SacRag, library: str, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    warm = found(library, lambda: opened.append("cold") or rag)
    monkeypatch.setattr(rag.engine, "is_current", lambda: False)
    same(warm.ask("Who planted the elm?", ASK), rag.ask("Who planted the elm?", ASK))
    assert opened == ["cold"] and serving._ended.is_set()


def scripted(path: Path, lines: list[bytes]) -> threading.Thread:
    """A process at the socket that says these lines to each who asks, and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        for _ in range(2):  # it is looked for, then asked
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as heard:
                if heard.readline():
                    connection.sendall(b"".join(lines))
        listener.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "lines",
    [
        *([], [b"{"], [b"[]\n"], [MET], [MET, b'{"refused": "no"}\n'], [MET, b"nonsense\n"]),
        *([b"[" * 100_000 + b"\n"], [b'{"pid": "x"}\n', MET], [b'{"pid": NaN}\n'], [MET, b'{"a":' * 9000 + b"\n"]),
        [b"\xff\xfe\n"],
    ],
    ids="silent cut list killed refused nonsense deep no-number NaN deep-answer bytes".split(),
)
def test_one_that_does_not_begin_is_passed_by(runtime: Path, rag: SacRag, library: str, lines: list[bytes]) -> None:
    thread = scripted(place.socket_of(library, *SETTINGS, make=True), lines)
    said: list[str] = []
    warm = Warm.at(library, *SETTINGS, lambda: rag, said.append)
    assert warm is not None
    same(warm.ask("Who planted the elm?", ASK), rag.ask("Who planted the elm?", ASK))
    thread.join(10)
    assert said == ["answered by this process"]


def test_one_that_dies_within_an_answer_says_so(runtime: Path, library: str) -> None:
    thread = scripted(place.socket_of(library, *SETTINGS, make=True), [MET, b'{"piece": "The "}\n'])
    stream = found(library).stream("Who?", ASK)
    assert next(stream) == "The "
    with pytest.raises(Exception, match="warm process 7 ended before its answer did"):
        next(stream)
    with pytest.raises(RuntimeError, match="not complete"):
        _ = stream.answer
    thread.join(10)


@pytest.mark.parametrize(
    "line",
    [
        b'{"answer": {}}',
        b'{"answer": null}',
        b'{"answer": {"sources": 5}}',
        b'{"answer": {"sources": [{"passage": 1}], "usage": {}, "timings": {}, "notices": []}}',
        b'{"answer": {"sources": [], "usage": {"x": 1}, "timings": {}, "notices": []}}',
        b'{"error": "SystemExit"}',
        b'{"error": "os", "message": ["rm"]}',
        b'{"other": 1}',
    ],
)
def test_what_another_program_says_in_its_place_is_an_error_of_ours(runtime: Path, library: str, line: bytes) -> None:
    lines = [MET, b'{"piece": "The "}\n', line + b"\n"]
    thread = scripted(place.socket_of(library, *SETTINGS, make=True), lines)
    stream = found(library).stream("Who?", ASK)
    with pytest.raises(SacError):
        list(stream)
    thread.join(10)


def test_what_a_killed_process_left_under_its_number_is_no_hindrance(rag: SacRag, library: str, runtime: Path) -> None:
    path = place.socket_of(library, *SETTINGS, make=True)
    path.with_suffix(f".{os.getpid()}").write_text("left")
    Server(rag, path, 0.1).run()
    assert list(path.parent.iterdir()) == []


def test_a_socket_that_nobody_listens_at_is_passed_by_and_swept(runtime: Path, library: str) -> None:
    path = place.socket_of(library, *SETTINGS, make=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists() and Warm.at(library, *SETTINGS, never) is None
    sweep(path.parent)
    assert not path.exists()


def test_it_ends_when_it_is_idle_and_takes_its_socket_along(rag: SacRag, library: str, runtime: Path) -> None:
    path = place.socket_of(library, *SETTINGS, make=True)
    server = Server(rag, path, 0.3)
    assert place.is_mine(path) and os.stat(path).st_mode & 0o777 == 0o600
    server.run()
    assert not path.exists()


def test_a_later_one_takes_the_place_of_an_earlier_one(rag: SacRag, library: str, runtime: Path) -> None:
    path = place.socket_of(library, *SETTINGS, make=True)
    first, second = Server(rag, path, 0.1), Server(rag, path, 0.1)
    first.run()
    assert path.exists()  # it is the second's
    second.run()
    assert not path.exists() and list(path.parent.iterdir()) == []


def sac(words: list[str], root: Path = Path(__file__).parents[2]) -> Any:
    path = os.pathsep.join([str(root), str(root / "cli")])
    run = subprocess.run(
        [sys.executable, "-m", "sac_cli", *words, "--device", "cpu", "--dtype", "float32"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "SAC_CONFIG": "/nonexistent"},
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stderr
    return run


@pytest.mark.slow
def test_processes_from_the_command_line(runtime: Path, library: str) -> None:
    """Started, asked, killed, started again, stopped."""
    question = ["ask", "Who planted the elm?", "--library", library, "--json", "-v", "--max-new-tokens", "4"]
    cold = sac([*question, "--no-warm"])
    assert "answered by this process" in cold.stderr
    started = sac(["warm", library])
    pid = int(started.stderr.split("process ")[1].split()[0])
    try:
        warm = sac(question)
        assert f"answered by the warm process {pid}" in warm.stderr
        first, second = json.loads(cold.stdout), json.loads(warm.stdout)
        assert first | {"timings": 0} == second | {"timings": 0}
        assert "answered by this process" in sac([*question, "--no-warm"]).stderr
    finally:
        os.kill(pid, signal.SIGKILL)
    (path,) = (runtime / "sac-rag").glob("*.sock")
    assert "answered by this process" in sac(question).stderr and path.exists()
    assert "answers from" in sac(["warm", library, "--idle", "5"]).stderr
    assert "has ended" in sac(["warm", library, "--stop"]).stderr
    deadline = time.monotonic() + 60
    while list((runtime / "sac-rag").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list((runtime / "sac-rag").iterdir()) == []
    assert "no warm process" in sac(["warm", library, "--stop"]).stderr


LISTENS = """
import os, signal, socket, sys, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o600)
listener.listen(1)
print(os.getpid(), flush=True)
if sys.argv[2] == "answers":
    connection, _ = listener.accept()
    connection.makefile("rb").readline()
    connection.sendall(b'{"pid": 7}\\n')
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["silent", "answers"])
def test_a_process_that_hangs_is_killed(runtime: Path, library: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REACHED_S", 0.3 if how == "silent" else 60.0)
    monkeypatch.setattr(client, "ENDED_S", 2.0)
    path = place.socket_of(library, *SETTINGS, make=True)
    command = [sys.executable, "-c", LISTENS, str(path), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        assert client.stop(library, *SETTINGS) == "killed"
        assert child.wait(30) == -signal.SIGKILL
    assert not path.exists()
    assert client.stop(library, *SETTINGS) == "none"


def test_one_at_which_too_many_wait_is_said_to_be_there(runtime: Path, library: str) -> None:
    path = place.socket_of(library, *SETTINGS, make=True)
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(2):
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(str(path))
        with pytest.raises(SacError, match="too many wait"):
            client.stop(library, *SETTINGS)


def test_what_cannot_be_opened_is_said_by_who_starts_it(runtime: Path, tmp_path: Path) -> None:
    with pytest.raises(LibraryNotFound, match=r"none\.lib"):
        client.start(str(tmp_path / "none.lib"), *SETTINGS, 60.0)
