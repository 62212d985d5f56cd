"""How runs end: exit codes, one line of error, tracebacks only when asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_toys import Sac
from test_cli_help import environment

from sac_rag.errors import LibraryLocked, SacError


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("ls",), 3),
        (("ask", "Who?"), 3),
        (("chat",), 3),
        (("info", "--library", "nowhere"), 3),
        (("rm", "x"), 3),
        (("gc",), 3),
        (("verify",), 3),
        (("add", "/etc/hostname"), 3),
        (("models", "path", "smolm2-135m-instruct"), 1),
        (("eval", "nofile.jsonl", "--reader", "closed,magic"), 2),
        (("eval", "nofile.jsonl", "--ratio", "five"), 2),
        (("train", "x.txt", "-o", "out", "--ratios", "five"), 2),
        (("train", "x.txt", "-o", "out", "--objective", "magic"), 2),
        (("train", "x.txt=0", "-o", "out"), 2),
        (("train", "a/x.txt", "b/x.txt", "-o", "out"), 2),
        (("train", "x.txt", "-o", "out", "--option", "selector"), 2),
    ],
)
def test_exit_codes_with_one_line(sac: Sac, args: tuple[str, ...], code: int) -> None:
    result = sac(*args)
    assert result.code == code, result.err
    assert result.out == "" and result.err.startswith("error: ") and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("asc", "Who?"), "'ask'"),
        (("ask", "Who?", "--libary", "x"), "--library"),
        (("ask", "Who?", "--max-new-tokens", "many"), "max-new-tokens"),
        (("index",), "PATH"),
        (("train", "x.txt"), "--output"),
    ],
)
def test_usage_errors(sac: Sac, args: tuple[str, ...], said: str) -> None:
    result = sac(*args)
    assert result.code == 2 and said in result.err and result.out == ""


def test_no_command_shows_help(sac: Sac) -> None:
    result = sac()
    assert result.code == 2 and "Commands" in result.out + result.err


def test_unknown_models_have_a_suggestion(sac: Sac) -> None:
    assert "Did you mean 'smollm2-135m-instruct'?" in sac("models", "path", "smolm2-135m-instruct").err


def test_locked_and_unexpected(sac: Sac, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sac_rag.library.library import Library

    def fail(error: BaseException) -> None:
        def verify(self: Library, deep: bool = True) -> list[str]:
            raise error

        monkeypatch.setattr(Library, "verify", verify)

    fail(LibraryLocked("busy since noon"))
    assert sac("verify").err == "error: busy since noon\n" and sac("verify").code == 1
    fail(ZeroDivisionError("half\x1b a loaf"))
    result = sac("verify")
    assert result.code == 1 and result.err == "error: ZeroDivisionError: half a loaf (run with -v for details)\n"
    loud = sac("verify", "-v")
    assert loud.code == 1 and "Traceback" in loud.err and loud.err.endswith("error: ZeroDivisionError: half a loaf\n")
    fail(KeyboardInterrupt())
    assert sac("verify").code == 130
    for kind in SacError.__subclasses__():
        assert kind.exit_code in (1, 2, 3)


def test_errors_are_not_coloured_without_a_terminal(sac: Sac) -> None:
    assert "\x1b" not in sac("ls").err


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "sac_cli", "models", "list"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=environment())
    finally:
        os.close(write)
    assert done.stderr == ""


def test_models(sac: Sac) -> None:
    listed = sac("models", "list", "--json").json["models"]
    assert {"smollm2-135m-instruct", "all-minilm-l6-v2"} <= {m["name"] for m in listed}
    assert set(listed[0]) == {"name", "kind", "source", "licence", "bytes", "present", "path"}
    assert "smollm2-135m-instruct\tbase\t" in sac("models", "list").out


def test_models_are_verified(sac: Sac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 100)
    names = [str(tmp_path / "one"), str(tmp_path / "two")]
    first = sac("models", "verify", *names, "--json")
    assert first.code == 0 and [(m["files"], m["bytes"], m["problems"]) for m in first.json["models"]] == 2 * [
        (1, 300, [])
    ]
    weights = tmp_path / "two" / "model.safetensors"
    stat = weights.stat()
    weights.write_bytes(b"twO" + weights.read_bytes()[3:])
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = sac("models", "verify", *names)
    assert found.code == 1 and f"{names[0]}\t1\t300\tyes\n{names[1]}\t1\t300\tno\n" == found.out
    assert f"{weights} changed while its size and time stayed" in found.err
    assert sac("models", "verify", "no-such").code == 1 and sac("models", "verify").code == 0
