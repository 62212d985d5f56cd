"""A repeated evaluation takes what is finished, and only what is the same."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pytest

from sac_rag.answer.engine import Engine
from sac_rag.errors import ConfigError
from sac_rag.evaluate import harness
from sac_rag.evaluate.harness import evaluate
from sac_rag.evaluate.results import Origin, Results, fingerprints, versions
from sac_rag.evaluate.runs import METRICS, Run
from tests.conftest import without_hashes


def stored(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_a_repeated_command_computes_nothing_and_loads_no_model(write_set, tiny, tmp_path, monkeypatch):
    files = [write_set("lamps"), write_set("keys", contexts=4)]
    wanted = {"readers": ("closed", "memory", "full-ft"), "ratios": (5.0, 15.0), **tiny}
    first = Results(tmp_path / "r")
    runs = evaluate(files, results=first, **wanted)
    kept = stored(tmp_path / "r")
    assert first.taken == 0 and len(kept) == 2 * 8 and not [n for n in kept if n.endswith(".tmp")]
    monkeypatch.setattr(Engine, "shared", lambda *_, **__: pytest.fail("a model was loaded"))
    again = Results(tmp_path / "r")
    assert evaluate(files, results=again, batch=3, **wanted) == runs
    assert again.taken == 8 and stored(tmp_path / "r") == kept


def test_predictions_lie_beside_the_run(write_set, tiny, tmp_path):
    (run,) = evaluate([write_set("lamps")], results=Results(tmp_path / "r"), **tiny)
    (path,) = (tmp_path / "r").glob("*.json")
    assert path.name.startswith("lamps.memory.5x.")
    whole = json.loads(path.read_text())
    assert Run(**whole["run"]) == run and whole["versions"] == versions()
    assert whole["settings"]["adapter_sha256"] == Origin.of(tiny["model"], "sac", tiny["adapter"]).adapter_sha256
    with gzip.open(path.with_suffix(".jsonl.gz"), "rt") as handle:
        rows = [json.loads(line) for line in handle]
    assert [r["qid"] for r in rows] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert all(isinstance(r["prediction"], str) and r["logprob"] < 0 for r in rows)
    for m in METRICS:
        assert sum(r[m] for r in rows) / 6 == pytest.approx(getattr(run, m))


def test_an_interrupted_command_goes_on_where_it_stopped(write_set, tiny, tmp_path, monkeypatch):
    files = [write_set(n) for n in ("a", "b", "c")]
    whole, count = harness.score, []

    def dying(*args, **kwargs):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(1)
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(harness, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            evaluate(files, results=Results(tmp_path / "r"), **tiny)
    results, plain = Results(tmp_path / "r"), evaluate(files, **tiny)
    resumed = evaluate(files, results=results, **tiny)
    assert results.taken == 2

    def timeless(runs):
        return [dataclasses.replace(r, seconds=1.0, examples_per_s=1.0, peak_mib=None) for r in runs]

    assert timeless(resumed) == timeless(plain)


def test_whatever_determines_a_run_names_it(write_set, tiny, tiny_adapter, tmp_path):
    path, folder = write_set("lamps"), tmp_path / "r"

    def computes(**changes):
        results = Results(folder)
        evaluate([path], results=results, **{"readers": ("memory",), **tiny, **changes})
        return results.taken == 0

    assert computes() and not computes() and not computes(batch=1)
    assert computes(ratios=(4.0,)) and not computes(ratios=(4,))
    assert computes(limit=3) and computes(limit=3, seed=1) and computes(dtype="bfloat16")
    assert computes(readers=("text",)) and computes(readers=("closed",))
    Path(path).write_text(Path(path).read_text().replace("gas", "tar"))
    assert computes() and not computes()
    other = tmp_path / "other"
    shutil.copytree(tiny_adapter, other)
    assert not computes(adapter=str(other))  # where it lies does not matter, what it holds does
    data = bytearray((without_hashes(other) / "adapter.safetensors").read_bytes())
    data[-2] ^= 1
    (other / "adapter.safetensors").write_bytes(data)
    assert computes(adapter=str(other))
    assert computes(readers=("text",))
    assert not computes(readers=("text",), adapter=str(other))  # of an adapter, text sees the layout alone
    card = json.loads((other / "card.json").read_text())
    card["layout"]["before"] = "\nQ: "
    (other / "card.json").write_text(json.dumps(card))
    assert computes(readers=("text",), adapter=str(other))


@pytest.mark.parametrize("damage", ["json", "lines", "missing", "gzip"])
def test_a_damaged_run_is_named(write_set, tiny, tmp_path, damage):
    file = write_set("lamps")
    evaluate([file], results=Results(tmp_path / "r"), **tiny)
    (path,) = (tmp_path / "r").glob("*.json")
    beside = path.with_suffix(".jsonl.gz")
    if damage == "json":
        path.write_text("{")
    elif damage == "lines":
        beside.write_bytes(gzip.compress(gzip.decompress(beside.read_bytes()).splitlines(keepends=True)[0]))
    elif damage == "gzip":
        beside.write_bytes(beside.read_bytes()[:-9])
    else:
        beside.unlink()
    with pytest.raises(ConfigError, match=path.name):
        evaluate([file], results=Results(tmp_path / "r"), **tiny)


def test_fingerprints_name_base_and_adapters(tiny):
    found = fingerprints(tiny["model"], {"sac": tiny["adapter"], "full-ft": tiny["full_ft_adapter"]})
    assert set(found) == {"model_sha256", "tokenizer_sha256", "adapter_sha256"}
    assert set(found["adapter_sha256"]) == {"sac", "full-ft"} and len(set(found["adapter_sha256"].values())) == 2
    assert set(versions()) == {"sac_rag", "torch", "transformers"}
