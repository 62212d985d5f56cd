"""`sac reproduce` at its tiny scale: every run once, shared, resumed, and told on pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sac_rag.errors import ConfigError
from sac_rag.reproduce.experiment import EXPERIMENTS, chosen, experiment_of
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.runner import Reproduced, needed, reproduce
from sac_rag.reproduce.scales import TINY, scale_of
from sac_rag.reproduce.store import Store

CPU = {"device": "cpu", "dtype": "float32"}


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

    stopped = reproduce("tiny", output, only=["table1"], listen=listen, stop=after_two_steps, **CPU)
    assert not stopped.whole and not stopped.failed
    assert heard[-2] == "train sac qa 2/3"
    assert not list((output / "runs").glob("score-*")) or stopped.computed < 12
    made = reproduce("tiny", output, only=["table1"], **CPU)
    assert made.taken == stopped.computed and made.whole
    return made


def test_a_stopped_reproduction_goes_on_where_it_was(methods: Reproduced, output: Path) -> None:
    """The stage that was stopped after its second step took its third, and its losses are those of a whole run."""
    (folder,) = (f.parent for f in output.glob("adapters/*/card.json") if _stages(f) == ["lm", "qa"])
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    whole = reproduce("tiny", output.parent / "undisturbed", only=["table1"], **CPU)
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
    again = reproduce("tiny", output, only=["methods"], **CPU)
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
    assert "[Methods on questions" in (output / "README.md").read_text()


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
    made = reproduce("tiny", tmp_path / "out", data=tmp_path / "data", only=["table1", "table12"], **CPU)
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
