"""What a terminal gets, and names that can be given back."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from cli_toys import Sac
from rich.cells import cell_len

sys.path.append(str(Path(__file__).parents[1] / "library"))

from library_support import DIM, FINGERPRINT, fill

from sac_cli import console
from sac_rag.library.library import Library

STEERING = [
    *map(chr, range(0x20)),
    *map(chr, range(0x7F, 0xA0)),
    "\u061c",
    "\u200e",
    "\u200f",
    "\u202a",
    "\u202e",
    "\u2066",
]
STEERING += ["\u2069", "\U000e0041", "\x1b]0;owned\x07", "\x9b31m"]
NAMES = [
    "plain.md",
    "two  blanks.md",
    " before.md",
    "behind ",
    "tab\there.md",
    "line\nbreak.md",
    "bell\x07.md",
    "red \x1b[31m.md",
    "c1 \x9b31m.md",
    "del\x7f.md",
    "hidden \u202egpj.md",
    "nbsp\u00a0here.md",
    "wide\u3000blank",
    "u\u0308ber.md",
    '"quoted".md',
    '"quoted"',
    '"',
    "back\\slash.md",
    "a*b[c]?.md",
    "\u2028line.md",
    "-dash.md",
    "💶 漢字.md",
    "tag\U000e0041.md",
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)


@pytest.fixture
def named(tmp_path: Path) -> str:
    """A library whose documents are called NAMES."""
    with Library.create(tmp_path / "named.lib", FINGERPRINT, dim=DIM) as library:
        fill(library, {name: [f"word {i}"] for i, name in enumerate(NAMES)})
    return "named.lib"


def test_json_never_steers(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": "".join(STEERING), "".join(STEERING[:40]): ["é 漢 💶", "a\x7fb\u202ec"]}
    console.emit(value)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and printed.endswith("\n")
    assert not set(printed[:-1]) & set(STEERING[:-2])
    assert json.loads(printed) == value and "é 漢 💶" in printed and "\\u009b" in printed and "\\u007f" in printed


@pytest.mark.usefixtures("terminal")
def test_json_of_a_command_to_a_terminal(sac: Sac, named: str) -> None:
    result = sac("ls", "--json", "--library", named)
    assert not set(result.out[:-1]) & set(STEERING[:-2])
    assert sorted(d["document"] for d in result.json["documents"]) == sorted(NAMES)


def test_names_that_ls_prints_are_taken_by_rm_and_ls(sac: Sac, named: str) -> None:
    printed = [line.split("\t")[0] for line in sac("ls", "--library", named).out.splitlines()]
    assert len(printed) == len(NAMES) and set(map(console.named, printed)) == set(NAMES)
    assert not {c for line in printed for c in line} & set(STEERING[:-2])
    for line in printed:
        passages = sac("ls", "--json", "--library", named, "--", line).json
        assert passages["document"] == console.named(line) and len(passages["passages"]) == 1
    for left, line in zip(range(len(NAMES) - 1, -1, -1), printed, strict=True):
        result = sac("rm", "--library", named, "--", line)
        assert result.code == 0, result.err
        assert result.out == line + "\n"
        assert len(sac("ls", "--json", "--library", named).json["documents"]) == left


@pytest.mark.parametrize("name", ["plain.md", "über.md", "a'b", "C:\\x", "漢字 x", "a b"])
def test_plain_names_are_printed_as_they_are(name: str) -> None:
    assert console.name(name) == name == console.named(name)


@pytest.mark.parametrize("name", ["a  b", "\x1b", '"', '""', '"a"', " ", "", "\n", "a\u00a0b", "\u202e"])
def test_other_names_are_json_and_come_back(name: str) -> None:
    shown = console.name(name)
    assert shown.isascii() and shown.isprintable() and (name == "" or shown.startswith('"'))
    assert console.named(shown) == name


def test_names_of_one_look(sac: Sac, tmp_path: Path) -> None:
    composed, split = unicodedata.normalize("NFC", "über"), unicodedata.normalize("NFD", "über")
    with Library.create(tmp_path / "one.lib", FINGERPRINT, dim=DIM) as library:
        fill(library, {split: ["word"]})
    shutil.copytree(tmp_path / "one.lib", tmp_path / "two.lib")
    assert sac("rm", composed, "--library", "one.lib", "--json").json["removed"] == [split]
    with Library.open(tmp_path / "two.lib", write=True) as library:
        fill(library, {composed: ["word b"], split + "x": ["word c"]})
    assert sac("rm", composed, "--library", "two.lib", "--json").json["removed"] == [composed]  # its very name
    assert sac("rm", split, "--library", "two.lib", "--json").json["removed"] == [split]


def test_two_names_of_one_look_are_told_apart(sac: Sac, tmp_path: Path) -> None:
    both = ["e\u0301e\u0301", "\u00e9e\u0301"]
    with Library.create(tmp_path / "two.lib", FINGERPRINT, dim=DIM) as library:
        fill(library, {name: [f"word {i}"] for i, name in enumerate(both)})
    result = sac("rm", "\u00e9\u00e9", "--library", "two.lib")
    assert result.code == 2 and all(ascii(name) in result.err for name in both)
    assert sac("rm", json.dumps(both[0]), "--library", "two.lib", "--json").json["removed"] == [both[0]]


def test_conditions_take_such_names(sac: Sac, library: str) -> None:
    result = sac("ask", "Trips?", "--json", "--where", 'document="docs/travel.md"', "--max-new-tokens", "1")
    assert {s["document"] for s in result.json["sources"]} == {"docs/travel.md"}


@pytest.mark.parametrize("width", [50, 80, 110])
def test_a_column_is_cut_so_that_a_row_stays_one_line(
    terminal: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [(1, "docs/canal.md", "The Erie Canal spans 363 miles and joins the Hudson to the Great Lakes, " * 2)]
    rows += [(2, "docs/漢字.md", "漢字" * 60), (3, "docs/short.md", "Short.")]
    console.table(("n", "document", "text"), rows, numbers=("n",), cut="text")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 2 + len(rows) and max(map(cell_len, lines)) <= width
    assert [line.endswith("…") for line in lines[2:]] == [True, True, False]
    assert min(map(cell_len, lines[2:4])) >= width - 4, "what there is of the line is used"
