"""Commands on a library that somebody sent: refused by name, with exit code 3, and nothing is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_toys import Sac

sys.path.append(str(Path(__file__).parents[1] / "security"))

from forgery import forged_journal, half_done

COMMANDS = {
    "ls": ("ls",),
    "info": ("info",),
    "verify": ("verify",),
    "shallow": ("verify", "--shallow"),
    "ask": ("ask", "Who approves trips?"),
    "gc": ("gc",),
    "rm": ("rm", "docs/keys.txt"),
    "add": ("add", "docs/travel.md"),
    "index": ("index", "docs"),
    "chat": ("chat",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_forged_journal_deletes_nothing(sac: Sac, library: str, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    forged_journal(Path(library), str(victim))
    result = sac(*COMMANDS[name], stdin="Who approves trips?\n")
    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error: ") and f"catalog.sqlite-journal names '{victim}'" in result.err
    assert victim.read_text() == "keep me"
    assert (Path(library) / "catalog.sqlite-journal").exists()


@pytest.mark.parametrize("name", ["ls", "info", "verify", "gc"])
def test_what_a_killed_writer_left_is_taken_back(sac: Sac, library: str, name: str) -> None:
    copy = half_done(Path(library), Path("half.lib"))
    result = sac(*COMMANDS[name], "--library", "half.lib")
    assert result.code == 0, result.err
    assert not (copy / "catalog.sqlite-journal").exists()
    assert len(sac("ls", "--library", "half.lib", "--json").json["documents"]) == 2
