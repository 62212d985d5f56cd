"""A short piece of every part of the torture; `make torture` runs them whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.library import kill_worker
from tests.reliability import crashes, power
from tests.reliability.crashes import Call, read_log, states
from tests.reliability.parts import PARTS, CannotRun, Found, Part
from tests.reliability.poisoned import KINDS, cases
from tests.reliability.record import Record, run
from tests.reliability.report import BY_TESTS, render
from tests.reliability.tracing import is_there

ROOT = Path(__file__).parents[2]
LEAST = {
    "kills": {"kills": 3},
    "power": {"judged": 40, "states": 1000},
    "full_disk": {"full": 1, "commands": 1},
    "mutations": {"of_library": 12, "of_adapter": 3, "of_model": 3, "of_config": 3},
    "snapshots": {"snapshots": 150, "commits": 2, "generations_seen": 2},
    "ids": {"operations": 40},
    "forged": {"prompts": 50, "nested": 4, "control_tokens": 4, "a_turn_of_its_own": 4},
    "tenants": {"requests": 28, "own_passages": 20},
    "erasure": {"canaries": 8},
    "threads": {"answers": 32, "texts": 8},
    "cancelled": {"streams": 24},
    "soak": {"rounds": 2},
}
"""What a short piece does at least; a number of the piece that differs from 0 is in NUMBER."""
NUMBER = {"full_disk": 1, "power": 3, "kills": 3}


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.short])
def test_a_short_piece_finds_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    try:
        found = PARTS[name].piece()(tmp_path, NUMBER.get(name, 0), True)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert found.bad == []
    for count, least in LEAST[name].items():
        assert found.counts[count] >= least, (count, found.counts)


def test_every_part_counts_what_its_goal_names() -> None:
    assert LEAST.keys() == {name for name, part in PARTS.items() if part.short}
    assert all(PARTS[name].name == name and PARTS[name].goal for name in PARTS)
    assert all((ROOT / path).exists() for _, path in BY_TESTS), BY_TESTS


@pytest.mark.skipif(not is_there(), reason="strace is not installed")
def test_a_writer_that_does_not_sync_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of a power cut are worth something: without fsync of segments some of them are torn."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(kill_worker, "SCENARIO", kill_worker.SCENARIO[:1])
    monkeypatch.setattr(crashes, "MOST_PRODUCTS", 40)
    monkeypatch.setattr(power, "SHORT", 10)
    try:
        found = power.piece(tmp_path, 0, True)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert found.bad and found.counts["judged"] > len(found.bad)


def test_states_of_a_file_that_was_never_synced() -> None:
    calls = [
        Call("create", "a.tmp"),
        Call("write", "a.tmp", data=b"1234", at=0),
        Call("rename", "a.tmp", "a"),
        Call("say", said=b"done"),
    ]
    found = list(states({"old": b"x"}, calls))
    contents = (b"", b"12", b"\0\x0034", b"1234", bytes(4))
    named = [{"old": b"x", name: content} for name in ("a", "a.tmp") for content in contents]
    assert sorted(map(str, ({"old": b"x"}, *named))) == sorted(str(disk) for _, disk in found)
    assert all(disk["old"] == b"x" and said == b"done" for said, disk in found)


def test_what_is_synced_stays() -> None:
    calls = [
        Call("create", "a.tmp"),
        Call("write", "a.tmp", data=b"12", at=0),
        Call("write", "a.tmp", data=b"34", at=2),
        Call("sync", "a.tmp"),
        Call("rename", "a.tmp", "a"),
        Call("sync names"),
        Call("say", said=b"done"),
    ]
    assert [disk for said, disk in states({}, calls) if said] == [{"a": b"1234"}]
    lost = [disk for said, disk in states({}, calls) if not said]
    assert {"a.tmp": b"\0\x0034"} in lost and {"a.tmp": b"12"} in lost and {} in lost


def test_writes_may_reach_the_disk_in_any_order() -> None:
    calls = [Call("write", "a", data=b"A", at=0), Call("write", "a", data=b"B", at=1), Call("truncate", "a", at=1)]
    assert {disk["a"] for _, disk in states({"a": b"xy"}, calls)} == {b"xy", b"Ay", b"AB", b"xB", b"A", b"x"}


def test_a_log_of_strace_is_read(tmp_path: Path) -> None:
    def hexed(text: str) -> str:
        return "".join(f"\\x{b:02x}" for b in text.encode())

    folder, log = Path("/d"), tmp_path / "log"
    log.write_text(
        f'7  openat(AT_FDCWD</x>, "{hexed("/d/a.tmp")}", O_WRONLY|O_CREAT|O_EXCL, 0600) = 3<{hexed("/d/a.tmp")}>\n'
        f'7  write(3<{hexed("/d/a.tmp")}>, "{hexed("ab")}", 2) = 2\n'
        f'7  write(3<{hexed("/d/a.tmp")}>, "{hexed("cd")}", 2) = 2\n'
        f'7  pwrite64(3<{hexed("/d/a.tmp")}>, "{hexed("z")}", 1, 9) = 1\n'
        f"7  fsync(3<{hexed('/d/a.tmp')}>) = 0\n"
        f'7  rename("{hexed("/d/a.tmp")}", "{hexed("/d/a")}") = 0\n'
        f"7  fsync(4<{hexed('/d')}>) = 0\n"
        f'7  unlink("{hexed("/d/b")}") = -1 ENOENT (No such file or directory)\n'
        f'7  write(5<{hexed("pipe:[1]")}>, "{hexed("said")}", 4) = 4\n'
        f'7  write(6<{hexed("/elsewhere")}>, "{hexed("said")}", 4) = 4\n'
    )
    assert read_log(log, folder) == [
        Call("create", "a.tmp"),
        Call("write", "a.tmp", data=b"ab", at=0),
        Call("write", "a.tmp", data=b"cd", at=2),
        Call("write", "a.tmp", data=b"z", at=9),
        Call("sync", "a.tmp"),
        Call("rename", "a.tmp", "a"),
        Call("sync names"),
        Call("say", said=b"said"),
    ]


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []

    def piece(place: Path, number: int, short: bool) -> Found:
        assert not list(place.iterdir())
        numbers.append(number)
        found = Found()
        found.counts["things"] = 2
        found.check(number != 1, "the second is bad")
        return found

    part = Part("toy", "toys break", "by hand", {"things": 5})
    monkeypatch.setattr(Part, "piece", lambda self: piece)
    assert run(part, tmp_path, lambda line: None, budget=0).counts == {}
    record = run(part, tmp_path, lambda line: None)
    assert numbers == [0, 1, 2] and record.missing(part) == {}
    assert (record.counts, record.bad, record.lines) == ({"things": 6}, 1, ["the second is bad"])
    more = run(Part("toy", "toys break", "by hand", {"things": 7}), tmp_path, lambda line: None)
    assert numbers == [0, 1, 2, 3] and more.counts == {"things": 8} == Record.read(tmp_path, "toy").counts


def test_the_page_is_that_of_the_records() -> None:
    assert (ROOT / "docs" / "reliability.md").read_text("utf-8") == render(ROOT / "docs" / "reliability")


def test_a_count_that_is_not_reached_says_so(tmp_path: Path) -> None:
    Record("kills", pieces=1, counts={"kills": 999, "commands": 7}, cpu="A", date="2030-01-01").write(tmp_path)
    lines = render(tmp_path).splitlines()
    assert "| a kill while writing | 999 kills (not reached) | 1,000 | 0 |" in lines
    assert "| a kill while writing | 7 commands | 7 | 0 |" in lines
    assert "| leaks | 0 seconds (not reached) | 3,600 | not run |" in lines


def test_the_poisoned_questions_are_what_they_say() -> None:
    from sac_rag.evaluate.metrics import contains

    found = cases()
    assert len(found) == 40 == len({c["question"] for c in found})
    for case in found:
        text, poison, right, lie = (str(case[n]) for n in ("text", "poison", "answers", "lie"))
        assert contains(text, case["answers"]) and not contains(text, [lie]), case  # type: ignore[arg-type]
        assert contains(poison, [lie]) and not contains(poison, case["answers"]), case  # type: ignore[arg-type]
        assert right != lie
    assert {c["kind"] for c in found} == set(KINDS)
