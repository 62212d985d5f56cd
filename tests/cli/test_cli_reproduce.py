"""`sac reproduce` as it is called: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

from cli_toys import Sac

CPU = ("--device", "cpu", "--dtype", "float32")


def test_it_prints_pages_and_takes_runs_the_second_time(sac: Sac, tmp_path: Path) -> None:
    asked = ("reproduce", "--scale", "tiny", "--only", "table13", "-o", "made", "--json", *CPU)
    first = sac(*asked)
    assert first.code == 0, first.err
    said = first.json
    assert (said["computed"], said["taken"], said["failed"], said["whole"]) == (1, 0, {}, True)
    assert said["pages"] == {"latency": "made/latency.md"}
    rows = {row["system"]: row for row in said["tables"]["latency"][0]["rows"]}
    assert rows["SAC"]["paper, ms"] == 243.87 and rows["SAC"]["here, ms (median)"] > 0
    assert (tmp_path / "made/latency.md").read_text().startswith("# Latency of compression (table 13)")
    again = sac(*asked)
    assert (again.json["computed"], again.json["taken"]) == (0, 1) and again.json["tables"] == said["tables"]


def test_what_it_cannot_do_is_said_with_a_remedy(sac: Sac) -> None:
    for flags, words in (
        (("--scale", "small"), "--scale small needs --data DIR"),
        (("--scale", "tiny", "--only", "table13,tabel12"), "Did you mean 'table12'?"),
        (("--scale", "tiny", "--systems", "sack"), "unknown system 'sack'"),
        (("--scale", "vast"), "unknown scale 'vast'; use tiny, small, paper"),
    ):
        done = sac("reproduce", "-o", "made", *flags)
        assert done.code == 2 and words in " ".join(done.err.split()), done.err


def test_a_run_that_fails_ends_with_code_1(sac: Sac, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flags = ("--data", "empty", "--only", "table21", "--systems", "sac", "-o", "made", *CPU)
    done = sac("reproduce", "--scale", "tiny", *flags)
    assert done.code == 1 and "lm/train-00.jsonl.gz is not in the folder of data" in " ".join(done.err.split())
    assert "0 computed, 0 found" in done.out and (tmp_path / "made/long.md").exists()
