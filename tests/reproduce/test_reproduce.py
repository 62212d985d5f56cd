"""`sac reproduce` at its tiny scale: every run once, shared, resumed, and told on pages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.reproduce.experiment import EXPERIMENTS, chosen, experiment_of
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.plan import Found, Plan, needed
from sac_rag.reproduce.runner import Reproduced, reproduce
from sac_rag.reproduce.scales import TINY, scale_of
from sac_rag.reproduce.store import Store

CPU = {"device": "cpu", "dtype": "float32"}
TWO = {**CPU, "systems": ["sac", "full-ft"]}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduced")


@pytest.fixture(scope="module")
def methods(output: Path) -> Reproduced:
    """Table 1 at tiny scale, killed once within a stage of training and gone on with."""
    heard: list[str] = []

    def listen(label: str, done: int, total: int) -> None:
        heard.append(f"{label} {done}/{total}")

    def after_two_steps() -> bool:
        return "train sac qa 2/3" in heard

    stopped = reproduce("tiny", output, only=["table1"], listen=listen, stop=after_two_steps, **TWO)
    assert not stopped.whole and not stopped.failed
    assert heard[-2] == "train sac qa 2/3"
    made = reproduce("tiny", output, only=["table1"], **TWO)
    assert made.taken == stopped.computed and made.whole
    return made


def test_a_stopped_reproduction_goes_on_where_it_was(methods: Reproduced, output: Path) -> None:
    """The stage that was stopped after its second step took its third, and its losses are those of a whole run."""
    (folder,) = (f.parent for f in output.glob("adapters/*/card.json") if _stages(f) == ["lm", "qa"])
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    whole = reproduce("tiny", output.parent / "undisturbed", only=["table1"], **TWO)
    assert whole.whole and whole.computed == methods.computed + methods.taken
    assert whole.tables == methods.tables
    assert _losses(output) == _losses(output.parent / "undisturbed")


def _stages(card: Path) -> list[str]:
    return [stage["objective"] for stage in json.loads(card.read_text())["training"]["stages"]]


def _losses(output: Path) -> list[object]:
    runs = [json.loads(p.read_text()) for p in sorted((output / "runs").glob("train-*.json"))]
    assert {run["settings"]["method"] for run in runs} == {"sac", "full-ft"}
    return [(run["fingerprint"], run["result"]["final_loss"], run["result"]["curve"]) for run in runs]


def test_a_run_that_stands_is_not_computed_again(methods: Reproduced, output: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (output / "runs").iterdir()}
    again = reproduce("tiny", output, only=["methods"], **TWO)
    assert (again.computed, again.taken) == (0, len(before)) and again.tables == methods.tables
    assert {p: p.stat().st_mtime_ns for p in (output / "runs").iterdir()} == before


def test_a_run_on_disk_says_what_it_is(methods: Reproduced, output: Path) -> None:
    for path in (output / "runs").iterdir():
        run = json.loads(path.read_text())
        assert path.name == f"{run['settings']['kind']}-{run['fingerprint']}.json"
        assert run["versions"]["torch"] and run["seconds"] >= 0
    scored = [json.loads(p.read_text()) for p in (output / "runs").glob("score-*.json")]
    memory = [s for s in scored if s["settings"]["reader"] == "memory"]
    assert {s["settings"]["ratio"] for s in memory} == set(TINY.ratios)
    for run in scored:
        mean = sum(run["result"]["scores"]["rouge1"]) / len(run["result"]["scores"]["rouge1"])
        assert run["result"]["run"]["rouge1"] == pytest.approx(mean, abs=1e-6)


def test_the_page_has_the_papers_figures_ours_and_what_is_missing(methods: Reproduced, output: Path) -> None:
    page = (output / "methods.md").read_text()
    assert "| SAC | 63.63 | 46.95 |" in page and "| Full-FT | 71.51 | 56.85 |" in page
    grid = next(t for t in methods.tables["methods"] if t["title"] == "5x, in-domain")
    rows = {row["system"]: row for row in grid["rows"]}
    assert rows["SAC"]["questions"] == 4 and rows["SAC"]["bytes a source token"] > 0
    first = grid["pairs"][0]
    assert (first["first"], first["second"], round(first["paper"], 2)) == ("full-ft", "sac", 7.88)
    assert "Not run:" in page and "| EPL | 62.90 | 46.33 |" in page
    assert "[Methods on questions" in (output / "README.md").read_text()


def test_every_experiment_fills_its_page(methods: Reproduced, output: Path) -> None:
    """All of them over two systems, the runs of table 1 taken as they stand."""
    made = reproduce("tiny", output, **TWO)
    assert made.whole and not made.failed and made.taken >= methods.computed + methods.taken
    assert set(made.pages) == set(EXPERIMENTS)
    for name, sections in made.tables.items():
        if name not in ("latency", "gradients", "selection"):  # those need systems that do not take part
            filled = [row for section in sections for row in section["rows"] if row.get("system") in ("SAC", "Full-FT")]
            assert name == "flops" or any(len([v for v in row.values() if v is not None]) > 2 for row in filled), name
    (long,) = (s for s in made.tables["long"] if s["title"] == "15x, long")
    assert {r["system"]: r.get("questions") for r in long["rows"]}["SAC"] == 3
    sizes = [s for s in made.tables["sizes"] if s["rows"]]
    assert [s["title"].split(",")[0] for s in sizes] == ["Llama-3.2-3B"] * 2 + ["Llama-3.1-8B"] * 2
    assert "the first 67% of the layers of a random model" in made.pages["sizes"].read_text()
    assert "](figures/trade-off.svg)" in made.pages["trade-off"].read_text()


@pytest.mark.slow
def test_a_killed_reproduction_goes_on(tmp_path: Path) -> None:
    """SIGKILL once the first run stands: what stands is taken, the rest is computed, nothing half-written is read."""
    command = [sys.executable, "-m", "sac_cli", "reproduce", "--scale", "tiny", "--only", "table1", "--systems", "sac"]
    process = subprocess.Popen([*command, "-o", str(tmp_path), "--device", "cpu", "--dtype", "float32"])
    runs = tmp_path / "runs"
    while not list(runs.glob("score-*.json")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.05)
    process.kill()
    process.wait()
    stood = {p.name: p.read_bytes() for p in runs.glob("*.json")}
    made = reproduce("tiny", tmp_path, only=["table1"], **{**CPU, "systems": ["sac"]})
    assert made.whole and not made.failed and made.taken == len(stood) and made.computed == 6 - len(stood)
    assert all((runs / name).read_bytes() == found for name, found in stood.items())


def test_a_run_that_nobody_foresaw_is_told_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sac_rag.reproduce.work.flops.analytic", lambda *_: 1 / 0)
    made = reproduce("tiny", tmp_path, only=["table12"], **CPU)
    why = made.failed["FLOPs of plain at 5x"]
    assert made.whole and made.computed == 0 and why.startswith("ZeroDivisionError: division by zero (its traceback: ")
    assert "ZeroDivisionError" in next((tmp_path / "runs").glob("*.error.txt")).read_text()


def test_experiments_share_their_runs(output: Path) -> None:
    plan = Plan(Place.make(TINY, None, output, **CPU))
    by_name = {name: set(needed(experiment_of(name).runs(plan))) for name in EXPERIMENTS}
    sac = plan.adapter("sac")
    assert all(sac in by_name[name] for name in ("methods", "components", "selection"))
    shared = by_name["methods"] & by_name["components"]
    assert {spec.kind for spec in shared} == {"train", "score"}


def test_every_trained_system_has_the_same_steps_and_data(output: Path) -> None:
    plan = Plan(Place.make(TINY, None, output, **CPU))
    names = plan.ready(("sac", "full-ft", "sac-no-mask", "sac-no-anchor", "sac-random", "epl", "icae", "500x"))
    last = [plan.adapter(name) for name in names]
    assert {dict(t.settings)["steps"] for t in last if t} == {3} and {t.data for t in last if t} == {last[0].data}


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path: Path, output: Path) -> None:
    (tmp_path / "data").mkdir()
    made = reproduce("tiny", tmp_path / "out", data=tmp_path / "data", only=["table1", "table12"], **TWO)
    assert made.whole and made.computed == 30
    assert "qa/squad.train.jsonl.gz is not in the folder of data" in made.failed["train full-ft qa"]
    assert (
        "failed" in made.failed["score sac 5x on qa/squad.dev.jsonl.gz"]
        and "failed" in made.pages["methods"].read_text()
    )


def test_names_of_tables_and_figures_choose_experiments() -> None:
    assert chosen(["table12", "table2", "table1"]) == ["methods", "flops"]
    assert chosen(None) == list(EXPERIMENTS)
    with pytest.raises(ConfigError, match="unknown experiment 'table99'"):
        chosen(["table99"])
    covered = [part for name in EXPERIMENTS for part in experiment_of(name).covers]
    assert len(covered) == len(set(covered))


def test_a_scale_needs_data_and_a_damaged_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--scale small needs --data"):
        reproduce("small", tmp_path)
    with pytest.raises(ConfigError, match="unknown scale"):
        scale_of("huge")
    plan = Plan(Place.make(TINY, None, tmp_path, **CPU))
    spec = experiment_of("flops").runs(plan)[0]
    Store(plan.place).keep(spec, {"analytic": {}, "counted": None}, 0.0)
    path = Store(plan.place).path(spec)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is no stored run"):
        Store(plan.place).find(spec)
    assert Found()(spec) is None


def test_faithful_systems_are_those_of_the_published_code(tmp_path: Path) -> None:
    """Table 1 as published: options, prompt and LoRA stand in the adapters' cards, and score at every ratio."""
    made = reproduce("tiny", tmp_path, only=["table1"], faithful=True, **{**CPU, "systems": ["sac", "icae"]})
    assert made.whole and not made.failed
    cards = [json.loads(p.read_text()) for p in tmp_path.glob("adapters/*/card.json")]
    tuned = {c["method"]: c for c in cards if len(c["training"]["stages"]) == 2}
    assert set(tuned) == {"sac", "icae"} and len(cards) == 4
    for card in tuned.values():
        assert card["lora"]["targets"] == ["q_proj", "v_proj"] and card["lora"]["start"] == "rank"
        assert card["layout"]["prefix"] == "" and card["layout"]["before"] == "\n### Question:\n"
        assert card["options"]["lm_token"] and card["options"]["header"] == "{bos}### Context:\n"
    assert tuned["sac"]["options"]["selector"] == "stride" and tuned["sac"]["options"]["anchor_rows"]
    assert "as the published code" in (tmp_path / "methods.md").read_text()


def test_a_system_keeps_its_own_options_when_it_is_faithful(tmp_path: Path) -> None:
    place = Place.make(TINY.as_published(), None, tmp_path, **CPU)
    chain = [Plan(place).adapter(name, for_="lm") for name in ("sac-random", "sac-no-mask", "beacon", "full-ft")]
    options = [dict(stage.options) if stage else None for stage in chain]
    assert options[0] and options[0]["selector"] == "random" and options[0]["anchor_rows"]
    assert options[1] and options[1]["causal"] and options[1]["selector"] == "stride"
    assert options[2] == {}, "our interpretation has no published options"
