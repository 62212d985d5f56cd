"""The runs on record are found again: their names follow from their settings as the planner makes them today."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sac_rag.compress.placing import Placing
from sac_rag.config import AskConfig
from sac_rag.evaluate.jobs import Planner, Variant, Work
from sac_rag.evaluate.prompts import ANSWER_TOKENS
from sac_rag.evaluate.readers import READERS, RETRIEVED, reader_of
from sac_rag.evaluate.results import Origin, Results
from sac_rag.evaluate.retrieved import BEFORE, _asked
from sac_rag.evaluate.runs import RetrievedRun

FOLDER = Path(__file__).parents[2] / "docs/results/runs"
RUNS = {path: json.loads(path.read_text("utf-8"))["settings"] for path in sorted(FOLDER.glob("*.json"))}
ON_RECORD = sorted({settings["reader"] for settings in RUNS.values()})
RETRIEVAL = ("contexts", "searched", "passage_tokens", "overlap", "embedder_sha256", "codec")


def named(settings):
    """The job that a command with these settings makes, where hashes are those of the day."""
    reader = reader_of(settings["reader"])
    variant = Variant(settings["reader"], "", "", None, settings["ratio"], settings.get("prompt"))
    planner = Planner(Work("base", settings["limit"], settings["seed"], 1, "cpu", "bfloat16"), stored=True)
    planner.file_sha256 = lambda file: settings["file_sha256"]
    built = {name: settings.get(name, {}) for name in ("lora", "options")}
    hashes = {name: settings.get(name, "other") for name in ("model_sha256", "tokenizer_sha256", "adapter_sha256")}
    origin = Origin(
        **hashes,
        method=settings.get("method", "other"),
        layout=settings["layout"],
        built=built,
        reader={"sha256": settings.get("reader_sha256")},
    )
    planner._origin = lambda engine: origin
    task = SimpleNamespace(name=settings["set"], questions=1, contexts=())
    if settings["track"] != RETRIEVED:
        return planner.given(variant, "file", task, settings["track"])
    asked = dict(settings["ask"])
    positions = asked.pop("placing")
    order, prior = asked.pop("order", BEFORE.order), asked.pop("prior", BEFORE.prior)
    placing, ask = Placing(positions, order, prior), AskConfig(**asked, order=order, prior=prior)
    more = {name: settings[name] for name in RETRIEVAL if name in settings}
    more["ask"] = _asked(ask, reader, placing)
    return planner.job(variant, "file", task, RETRIEVED, more, RetrievedRun)


def test_every_run_on_record_is_found_under_the_key_that_its_settings_make():
    results = Results(FOLDER)
    for path, settings in RUNS.items():
        job = named(settings)
        assert results.path(job.settings) == path, {**settings, **job.settings}
        found = results.find(job.run, job.settings)
        assert found.run.reader == settings["reader"] and found.run.n == len(found.predictions)
        assert isinstance(found.run, RetrievedRun) == (settings["track"] == RETRIEVED)
    assert results.taken == len(RUNS) > 180
    assert {name.partition("+")[0] for name in ON_RECORD} == set(READERS) - {"words"}, (
        "words are read by nothing that ships"
    )


@pytest.mark.parametrize("reader", ON_RECORD)
def test_another_setting_is_another_run(reader):
    path, settings = next((p, s) for p, s in RUNS.items() if s["reader"] == reader)
    results = Results(FOLDER)
    for name, value in (("limit", 7), ("file_sha256", "0"), ("model_sha256", "0"), ("layout", {})):
        assert results.path(named({**settings, name: value}).settings) != path, name
    of_adapter = results.path(named({**settings, "adapter_sha256": "0"}).settings)
    assert (of_adapter != path) == reader_of(reader).by_adapter
    assert settings.get("answer_tokens", settings.get("ask", {}).get("max_new_tokens")) == ANSWER_TOKENS
