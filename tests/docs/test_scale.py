"""The plan for large corpora: its simulation against queueing theory, and the page's table against the script."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/scale.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_plan", ROOT / "scripts/scale_plan.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def erlang_c(servers: int, load: float) -> float:
    """The chance of waiting in a queue M/M/c."""
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    return top / (sum(load**i / math.factorial(i) for i in range(servers)) + top)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.6), (3, 2.1), (8, 6.4)])
def test_a_queue_waits_as_long_as_theory_says(script: Any, servers: int, load: float) -> None:
    rng = np.random.default_rng(1)
    arrivals = rng.exponential(1.0, 400_000).cumsum()
    service = rng.exponential(load, 400_000)
    waits = script.queue(arrivals, service, servers) - arrivals - service
    assert waits.min() > -1e-6
    want = erlang_c(servers, load) * load / (servers - load)
    assert waits.mean() == pytest.approx(want, rel=0.06)


def test_questions_that_nobody_delays(script: Any) -> None:
    seen = script.latencies(0.001, 0.5, 1, 1.0, 1)
    assert seen.min() > 0.5 and seen.mean() == pytest.approx(1.5, rel=0.02)


UNITS = dict(
    passage_tokens=170.0,
    kv_bytes=78_000.0,
    catalog_bytes=1_900.0,
    vector_bytes=1536.0,
    lexical_bytes=700.0,
    compress_s=0.33,
    search_s=0.15,
    answer_s=0.7,
)


def test_a_plan_holds_what_it_promises(script: Any) -> None:
    units, machine = script.Units(**UNITS), script.Machine(64, 460e9, 8e12, 200e9, 3.0)
    plans = [script.plan(n, 20.0, 3.0, units, machine) for n in (1e6, 1e8, 1e9)]
    for made in plans:
        assert made.p95_s <= 3.0 and made.answer_cores > 20 * 0.7
        assert made.shards * machine.memory_bytes >= made.served_bytes
        assert made.shards * machine.disk_bytes >= made.kv_bytes
        assert made.price_per_million == pytest.approx(made.machines * 3.0 / (20 * 3600) * 1e6)
    assert plans[1].kv_bytes == pytest.approx(100 * plans[0].kv_bytes)
    assert plans[1].compress_hours == pytest.approx(100 * plans[0].compress_hours)
    assert plans[0].index == "exact"
    for slow in (dataclasses.replace(units, search_s=5.0), dataclasses.replace(units, vector_bytes=40_000.0)):
        assert script.plan(1e8, 20.0, 3.0, slow, machine).index == "ivf-pq"
    with pytest.raises(ValueError, match="allow more"):
        script.plan(1e6, 20.0, 0.5, units, machine)


def test_units_are_those_of_a_library(script: Any, tiny_config: Any, tmp_path: Path) -> None:
    from sac_rag import SacRag
    from sac_rag.records import Document

    with SacRag.index([], tmp_path / "a.lib", tiny_config) as rag:
        rag.put([Document(f"{i}", f"The tide of day {i} came at noon, and left a shell.") for i in range(20)])
        stats = rag.stats()
    units = script.units_of(str(tmp_path / "a.lib"), 5.0, "transform", 0.2)
    assert units.passage_tokens * 20 == pytest.approx(stats.source_tokens)
    assert (units.catalog_bytes + units.vector_bytes) * 20 == pytest.approx(stats.catalog_bytes)
    bench = json.loads((ROOT / "docs/results/2-bench.json").read_text("utf-8"))["tables"]
    (bytes_per_token,) = (
        r["bytes_per_source_token"] for r in bench["storage"] if (r["ratio"], r["codec"]) == (5.0, "transform")
    )
    assert units.kv_bytes == pytest.approx(bytes_per_token * units.passage_tokens)
    assert units.answer_s * bench["serving"][-1]["memory_per_s"] == bench["machine"][0]["threads"]
    with pytest.raises(ValueError, match="no ratio 7 with codec 'transform'"):
        script.units_of(str(tmp_path / "a.lib"), 7.0, "transform", 0.2)


def test_the_page_shows_what_its_command_prints(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text("utf-8")
    commands = re.findall(r"^PYTHONPATH=\. python scripts/scale_plan\.py (.*--units.*)$", text, re.MULTILINE)
    assert commands
    for command in commands:
        script.main(shlex.split(command))
        assert capsys.readouterr().out.strip() in text
