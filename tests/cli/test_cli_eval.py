"""`sac eval` for real, on toys: what it prints, what it keeps, and what it says when files are missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_toys import Sac, Toys
from test_cli_help import environment

from tests.conftest import without_hashes

KEYS = {"set", "reader", "method", "ratio", "n", "f1", "em", "rouge1", "em_raw", "seconds"}
MORE = {"f1_low", "f1_high", "em_low", "em_high", "examples_per_s", "peak_mib", "cut", "retention"}


def write(name: str, repeat: int = 1) -> str:
    rows = [
        {
            "context": f"The lamp of house {i} in {name} burned oil until {1900 + i}. " * repeat,
            "qas": [{"qid": str(i), "question": f"Until when did lamp {i} burn oil?", "answers": [str(1900 + i)]}],
        }
        for i in range(4)
    ]
    Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{name}.jsonl"


@pytest.fixture(scope="session")
def full_ft(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Full-FT adapter of the toy model, untrained."""
    from sac_rag.compress import adapter
    from sac_rag.models.loading import choose_device, choose_dtype, load_base

    folder, device = tmp_path_factory.mktemp("adapters") / "full-ft", choose_device("cpu")
    values = json.loads((toys.adapter / "card.json").read_text())
    card = adapter.Card(**{**values, "method": "full-ft", "ratios": (1.0,)})
    adapter.save(adapter.build(*load_base(toys.base, device, choose_dtype("float32", device)), card), card, folder)
    return folder


@pytest.fixture
def flags(toys: Toys, full_ft: Path) -> tuple[str, ...]:
    used: dict[str, Any] = {"model": toys.base, "adapter": toys.adapter, "full-ft-adapter": full_ft}
    return (
        *(f"--{k}={v}" for k, v in used.items()),
        "--dtype=float32",
        "--device=cpu",
        "--workers=1",
    )


def test_json_holds_runs_versions_and_fingerprints(sac: Sac, flags: tuple[str, ...]) -> None:
    done = sac("eval", write("lamps"), write("keys"), "--reader", "memory,full-ft", "--ratio", "5,15", "--json", *flags)
    assert done.code == 0, done.err
    assert set(done.json) == {"runs", "versions", "fingerprints"}
    runs = done.json["runs"]
    assert [(r["set"], r["reader"], r["ratio"]) for r in runs] == [
        (s, *row) for row in (("memory", 5.0), ("memory", 15.0), ("full-ft", None)) for s in ("lamps", "keys", "macro")
    ]
    assert all(set(r) >= KEYS | MORE for r in runs)
    assert set(done.json["versions"]) == {"sac_rag", "torch", "transformers"}
    prints = done.json["fingerprints"]
    assert len(prints["model_sha256"]) == 64 and set(prints["adapter_sha256"]) == {"sac", "full-ft"}


def test_the_table_ends_with_the_interval(sac: Sac, flags: tuple[str, ...]) -> None:
    done = sac("eval", write("lamps"), write("keys"), "--reader", "closed", *flags)
    assert done.code == 0, done.err
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [(r[0], r[1], r[4]) for r in rows] == [
        ("lamps", "closed", "4"),
        ("keys", "closed", "4"),
        ("macro", "closed", "8"),
    ]
    for r in rows:
        assert len(r) == 11
        low, high = map(float, r[10].split("-"))
        assert low <= float(r[5]) <= high


def test_people_see_sets_and_readers_at_once_below_the_table(
    sac: Sac, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sac_cli import console

    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    done = sac("eval", write("lamps"), write("keys"), "--reader", "closed,full-ft", *flags)
    assert done.code == 0, done.err
    head, *rows = [line.split() for line in done.out[done.out.index("F1 / EM") :].splitlines()]
    assert head == ["F1", "/", "EM", "closed", "full-ft"]
    assert [r[0] for r in rows if "/" in r] == ["lamps", "keys", "macro"]


def test_a_repeated_command_says_what_it_took(sac: Sac, flags: tuple[str, ...]) -> None:
    command = ("eval", write("lamps"), "--reader", "closed,memory", "--results", "kept", "--json", *flags)
    first, again = sac(*command), sac(*command)
    assert first.code == again.code == 0 and first.err == ""
    assert "2 runs were taken from kept" in again.err
    assert again.json == first.json
    assert len(list(Path("kept").glob("*.json"))) == len(list(Path("kept").glob("*.jsonl.gz"))) == 2


def test_cut_contexts_are_noticed(sac: Sac, flags: tuple[str, ...]) -> None:
    done = sac("eval", write("long", repeat=100), "--limit", "2", "--reader", "text", "--json", *flags)
    assert done.code == 0 and done.json["runs"][0]["cut"] == 2
    assert "long, text: 2 did not fit" in done.err and done.err.count("\n") == 1


def test_the_retrieved_track_takes_all_readers_and_pools(sac: Sac, toys: Toys, flags: tuple[str, ...]) -> None:
    files = (write("lamps"), write("keys"))
    small = ("-k", "2", "--passage-tokens", "64", "--limit", "2", "--json")
    done = sac(
        "eval", *files, "--track", "retrieved", "--pool", "--reader", "memory,text,full-ft", "--ratio", "5,15",
        *small, *flags, "--embedder", str(toys.embedder),
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = done.json["runs"]
    assert [(r["reader"], r["ratio"]) for r in runs[::3]] == [
        ("memory", 5.0), ("memory", 15.0), ("text", None), ("full-ft", None),
    ]  # fmt: skip
    assert {r["k"] for r in runs} == {2} and len({r["passages"] for r in runs}) == 1 and runs[0]["n"] == 2
    assert all(0 <= r["recall"] <= 1 for r in runs)
    assert "easier than in use" in done.err


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("-k", "5"), "-k"),
        (("--passage-tokens", "64"), "--passage-tokens"),
        (("--embedder", "any"), "--embedder"),
        (("--contexts", "3", "--pool"), "--contexts, --pool"),
    ],
)
def test_flags_of_the_retrieved_track_are_refused_on_the_other(sac: Sac, args: tuple[str, ...], named: str) -> None:
    done = sac("eval", write("lamps"), *args)
    assert done.code == 2 and f"leave out {named}, or use --track retrieved" in done.err


def test_settings_for_all_commands_do_not_stand_in_the_way(sac: Sac, flags: tuple[str, ...]) -> None:
    Path("sac.toml").write_text('embedder = "all-minilm-l6-v2"\nk = 3\n')
    done = sac("eval", write("lamps"), "--reader", "closed", *flags, SAC_PASSAGE_TOKENS="64")
    assert done.code == 0 and done.out.startswith("lamps\tclosed"), done.err


def test_groups_of_sets_have_an_average_each(sac: Sac, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"in-domain": ("lamps.jsonl", "keys.jsonl"), "out-of-domain": ("boats.jsonl", "wells.jsonl")}
    monkeypatch.setattr("sac_rag.evaluate.tasks.SETS", sets)
    for files in sets.values():
        for file in files:
            write(file.removesuffix(".jsonl"))
    command = ("eval", "--data", ".", "--reader", "memory,full-ft", "--results", "kept", "--json", *flags)
    done = sac(*command, "--sets", "in-domain,out-of-domain")
    assert done.code == 0, done.err
    names = ["lamps", "keys", "macro in-domain", "boats", "wells", "macro out-of-domain"]
    assert [r["set"] for r in done.json["runs"]] == names * 2
    assert [r["n"] for r in done.json["runs"][:6]] == [4, 4, 8] * 2
    repeated = sac(*command, "--sets", "in-domain", "--sets", "out-of-domain")
    assert repeated.json["runs"] == done.json["runs"]
    alone = sac(*command, "--sets", "out-of-domain").json["runs"]
    assert [r["set"] for r in alone] == ["boats", "wells", "macro"] * 2
    assert [{**r, "set": ""} for r in alone] == [{**r, "set": ""} for r in done.json["runs"] if r["set"] in names[3:]]


@pytest.fixture
def changed(toys: Toys) -> Path:
    """./changed: the adapter with another anchor embedding."""
    from safetensors.torch import load_file, save_file

    folder = without_hashes(Path(shutil.copytree(toys.adapter, "changed")))
    tensors = load_file(folder / "adapter.safetensors")
    save_file({name: t + 0.3 for name, t in tensors.items()}, folder / "adapter.safetensors")
    return folder


def test_adapters_are_compared_with_the_first(sac: Sac, toys: Toys, flags: tuple[str, ...], changed: Path) -> None:
    flags = tuple(f for f in flags if not f.startswith("--adapter"))
    files = (write("lamps"), write("keys"))
    named = ("--adapter", f"whole={toys.adapter}", "--adapter", str(changed))
    command = ("eval", *files, "--reader", "text,memory", "--ratio", "5,15", "--results", "kept", *flags)
    done = sac(*command, *named, "--json")
    assert done.code == 0, done.err
    runs = done.json["runs"]
    rows = [(None, None)] + [(a, r) for a in ("whole", "changed") for r in (5.0, 15.0)]
    assert [(r["adapter"], r["ratio"]) for r in runs] == [row for row in rows for _ in range(3)]
    for r in runs:
        compared = r["adapter"] == "changed"
        assert all((r[f"difference{end}"] is not None) == compared for end in ("", "_low", "_high"))
    for a, b in zip(runs[3:9], runs[9:], strict=True):
        assert b["difference"] == pytest.approx(b["f1"] - a["f1"]) and a["set"] == b["set"]
        assert b["difference_low"] <= b["difference"] <= b["difference_high"]
    assert set(done.json["fingerprints"]["adapter_sha256"]) == {"whole", "changed"}
    shown = sac(*command, f"--adapter=whole={toys.adapter},{changed}").out.splitlines()
    cells = [line.split("\t") for line in shown]
    assert [c[3] for c in cells] == ["" if a is None else a for a, _ in rows for _ in range(3)]
    assert all(bool(c[-1]) == (c[3] == "changed") for c in cells)
    assert cells[-1][-1].startswith(f"{100 * runs[-1]['difference']:+.2f} (") and " to " in cells[-1][-1]
    alone = sac(*command, "--adapter", f"whole={toys.adapter}", "--json").json
    assert {r["adapter"] for r in alone["runs"]} == {None} and set(alone["fingerprints"]["adapter_sha256"]) == {"sac"}


def test_adapters_need_names_of_their_own(sac: Sac, toys: Toys, changed: Path) -> None:
    twice = Path(shutil.copytree(changed, "other/changed"))
    file = write("lamps")
    for args, word in (
        ((f"--adapter={changed},{twice}",), "two adapters are called 'changed'"),
        (("--adapter", "=x"), "NAME=FOLDER"),
        (("--adapter", ","), "no adapter"),
        ((f"--adapter=a={changed},b={changed}", "--track", "retrieved"), "2 adapters"),
        ((f"--adapter=a={changed},b={changed}", "--reader", "text"), "2 adapters"),
        (("--workers", "2", "--track", "retrieved"), "--workers 2"),
    ):
        done = sac("eval", file, *args)
        assert done.code == 2 and word in done.err and done.err.count("\n") == 1


def test_workers_print_what_one_process_prints(sac: Sac, flags: tuple[str, ...]) -> None:
    command = ("eval", write("lamps"), write("keys"), "--json", *flags)
    side, here = sac(*command, "--workers", "2"), sac(*command)
    assert side.code == 0 and side.err == ""
    kept = set(side.json["runs"][0]) - {"seconds", "examples_per_s", "peak_mib"}
    assert [{k: r[k] for k in kept} for r in side.json["runs"]] == [{k: r[k] for k in kept} for r in here.json["runs"]]


def test_bars_are_for_runs_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from sac_cli import console
    from sac_cli.bars import run_bars

    shown = io.StringIO()
    monkeypatch.setattr(console, "shows_progress", lambda: True)
    monkeypatch.setattr(console, "err", lambda: Console(file=shown, force_terminal=True, width=100))
    with run_bars() as listen:
        assert listen is not None
        listen("lamps", "sac 5x", 4, 4)
        listen("keys", "sac 5x", 1, 4)
        listen("all", "2 runs", 5, 8)
    frames = shown.getvalue().split("\r")
    assert "lamps sac 5x" in frames[1]
    assert [line.split()[-2] for line in frames[-2].splitlines()[:2]] == ["1/4", "5/8"]
    assert "keys sac 5x" in frames[-2] and "all 2 runs" in frames[-2] and "lamps" not in frames[-2]


def test_named_sets_need_their_folder_and_name_what_is_missing(sac: Sac) -> None:
    Path("qa").mkdir()
    Path("qa/squad.dev.jsonl.gz").touch()
    done = sac("eval", "--sets", "in-domain", "--data", "qa")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert "nq.test.jsonl.gz of in-domain" in done.err and "qa/nq.test.jsonl.gz" in done.err
    for args in (
        ("--sets", "in-domain"), ("--sets", "in-domain,nowhere", "--data", "qa"), ("--data", "qa"), (),
        ("x.jsonl", "--sets", "in-domain", "--data", "qa"), ("x.jsonl", "--pool"),
    ):  # fmt: skip
        done = sac("eval", *args)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1


def test_wrong_arguments_are_found_before_anything_heavy_is_loaded() -> None:
    script = (
        "import sys; from sac_cli.main import run; "
        "codes = [run(['eval', '--help']), run(['eval', '--sets', 'in-domain', '--data', 'nowhere'])]; "
        "print('LOADED', codes, sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "LOADED [0, 2] []" in done.stdout
