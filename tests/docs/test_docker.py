"""The Dockerfile names what is there: paths, extras, commands, ports. Built only where SAC_TEST_DOCKER=1 says so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pathspec
import pytest

from sac_cli.main import COMMANDS
from sac_rag.serve.settings import ServeConfig
from tests.docs.pages import ROOT, blocks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINES = [
    line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if line.strip() and not line.startswith("#")
]
ARGS = dict(line.split()[1].partition("=")[::2] for line in LINES if line.startswith("ARG "))
(PAGE,) = (b.text for b in blocks(ROOT / "docs/how-to/install.md") if "docker build" in b.text)


def values(instruction: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(instruction + " ")]


def ignored() -> pathspec.PathSpec:
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    # In a .dockerignore a name is at the root, and what is let in again may lie below what was left out.
    return pathspec.PathSpec.from_lines(
        "gitignore",
        [re.sub(r"^(!?)(?!\*|/|#)", r"\1/", rule) for rule in rules if rule.strip()],
    )


def test_what_is_copied_is_there_and_not_left_out() -> None:
    copied = [part for value in values("COPY") if "--from" not in value for part in value.split()[:-1]]
    assert {"pyproject.toml", "sac_rag", "cli", "integrations"} <= set(copied)
    out = ignored()
    for name in copied:
        path = ROOT / name
        assert path.exists(), f"COPY {name}: it is not there"
        files = [path] if path.is_file() else [p for p in path.rglob("*.py")]
        for file in files:
            assert not out.match_file(file.relative_to(ROOT).as_posix()), f".dockerignore leaves out {file}"
    for name in ("sac_rag/models/adapters/smollm2-135m-instruct/full-ft/card.json", "tests/conftest.py", "docs/log.md"):
        assert (ROOT / name).exists() and out.match_file(name), f".dockerignore lets in {name}"


def test_the_wheel_finds_all_it_needs_among_what_is_copied() -> None:
    """Files that pyproject.toml names lie in what is copied."""
    copied = {part for value in values("COPY") if "--from" not in value for part in value.split()[:-1]}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name in (PROJECT["readme"], *PROJECT["license-files"], *wheel["packages"]):
        assert any(name == c or name.startswith(f"{c}/") for c in copied), f"{name} is not copied"


def test_names_are_those_of_the_package() -> None:
    assert set(ARGS["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    assert values("ENTRYPOINT") == ['["sac"]'] and "sac" in PROJECT["scripts"]
    assert values("EXPOSE") == [str(ServeConfig.port)]
    assert tuple(map(int, ARGS["PYTHON"].split("."))) >= (3, 11)
    assert f"Programming Language :: Python :: {ARGS['PYTHON']}" in PROJECT["classifiers"]
    for command in re.findall(r"\bsac (\w+)", "\n".join(values("RUN"))):
        assert command in COMMANDS
    environment = dict(part.partition("=")[::2] for value in values("ENV") for part in value.split())
    read = "".join(p.read_text("utf-8") for p in (ROOT / "sac_rag/models").glob("*.py"))
    assert {"SAC_CACHE", "PATH"} <= environment.keys() and "SAC_CACHE" in read
    assert environment["SAC_CACHE"] in values("VOLUME")


def test_the_page_says_what_the_file_takes() -> None:
    text = PAGE.replace("\\\n", "")
    assert set(re.findall(r"--build-arg (\w+)=", text)) <= set(ARGS)
    (work,) = values("WORKDIR")[-1:]
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        mounts = [words[i + 1].rpartition(":")[2] for i, word in enumerate(words) if word == "-v"]
        assert set(mounts) <= {work, *values("VOLUME")}
        if words[1] == "run":
            assert set(mounts) == {work, *values("VOLUME")}
            image = next(i for i, word in enumerate(words) if word.startswith("sac-rag"))
            assert words[image + 1] in COMMANDS


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("SAC_TEST_DOCKER") != "1", reason="SAC_TEST_DOCKER=1 builds the image: minutes, by Docker"
)
def test_the_image_is_built(tmp_path: Path) -> None:
    subprocess.run(["docker", "build", "-q", "-t", "sac-rag:test", str(ROOT)], check=True, timeout=3600)
    said = subprocess.run(
        ["docker", "run", "--rm", "sac-rag:test", "--version"], check=True, capture_output=True, text=True
    )
    assert said.stdout.startswith("sac ")
