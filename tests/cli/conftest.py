"""A whole product small enough to run for real: models, documents, a library, and a way to call `sac`."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for cli_toys, whatever import mode is used

from cli_toys import Result, Sac, Toys, make_adapter, make_bert, make_llama

from sac_cli.main import run


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    """Made once; the model cache of the session is a folder of its own."""
    root = tmp_path_factory.mktemp("toys")
    before = os.environ.get("SAC_CACHE")
    os.environ["SAC_CACHE"] = str(root / "cache")
    try:
        yield Toys(make_llama(root / "llama"), make_bert(root / "bert"), make_adapter(root / "adapter", root / "llama"))
    finally:
        os.environ.pop("SAC_CACHE")
        if before is not None:
            os.environ["SAC_CACHE"] = before


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, without settings from outside."""
    for name in os.environ:
        if name.startswith("SAC_") and name != "SAC_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("SAC_CONFIG", str(tmp_path / "no-settings-of-the-user.toml"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sac(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sac:
    """Run a command line in this process: `sac("ask", "Who?", stdin="", SAC_K="2")`."""

    def call(*args: str, stdin: str = "", **environment: str) -> Result:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr("sys.stdin", io.StringIO(stdin))
            capsys.readouterr()
            code = run(args)
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call


def write_documents(folder: Path) -> Path:
    """Two texts and an empty file."""
    folder.mkdir()
    trips = (f"# Travel\n\nTrips above {euros} euros are approved by Ada Quill.\n" for euros in (500, 600, 700))
    (folder / "travel.md").write_text("".join(trips))
    (folder / "keys.txt").write_text("The spare key hangs behind the blue door in the harbour office.\n")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """./docs"""
    return write_documents(tmp_path / "docs")


@pytest.fixture(scope="session")
def template(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with docs and the library made from them."""
    root = tmp_path_factory.mktemp("template")
    write_documents(root / "docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, value in toys.environment.items():
            patch.setenv(name, value)
        assert run(["index", "docs", "--quiet"]) == 0
    return root


@pytest.fixture
def library(template: Path, tmp_path: Path) -> str:
    """./docs and ./sac.lib made from it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return "sac.lib"
