"""The one script for a GPU, rehearsed on a CPU: from the data folder to an evaluated adapter, with five packages."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sac_rag.compress import adapter
from sac_rag.models.loading import load_base
from sac_rag.models.sources import fingerprint_of
from sac_rag.train import speed
from tests.conftest import tiny_llama

ROOT = Path(__file__).parents[2]
ABSENT = "typer rich faiss bm25s Stemmer langchain_core llama_index platformdirs gguf pypdfium2 lxml sentencex xxhash"
ALONE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}.split()))  # importing one of them fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALONE, str(ROOT / "scripts/gpu_recipe.py"), *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.minutes
def test_tiny_from_data_to_scores_and_again(data_folder, tiny_base, tmp_path):
    out, dev = tmp_path / "out", ("--dev", "qa/squad.dev.jsonl.gz")
    given = ("--recipe", "tiny", "--data", data_folder, "--output", out, "--base", tiny_base, "--limit", "2")
    same = (*given, "--device", "cpu", "--dtype", "float32")
    cut = script(*same, *dev, "--time-budget", "0")
    assert cut.returncode == 0, cut.stderr[-3000:]
    results = json.loads((out / "results.json").read_text())
    assert [t["steps"] for t in results["training"]] == [1, 1, 1, 1], "out of time: still scored and saved"
    assert [(r["reader"], r["ratio"]) for r in results["runs"]] == [
        ("text", None), ("memory", 2.0), ("memory", 5.0), ("memory", 15.0), ("memory", 51.0)
    ]  # fmt: skip
    assert all(r["n"] == 2 and r["set"] == "squad.dev" for r in results["runs"])
    assert all(t["examples_per_s"] > 0 and t["share_of_peak"] is None for t in results["training"])
    assert cut.stdout.count("unknown card (cpu)") == 4 and "squad.dev" in cut.stdout

    resumed = script(*same, *dev)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    again = json.loads((out / "results.json").read_text())
    assert [t["steps"] for t in again["training"]] == [1, 1, 1, 3]
    model, tokenizer = load_base(tiny_base, torch.device("cpu"), torch.float32)
    _, card = adapter.load(out, model, tokenizer, base_fingerprint=fingerprint_of(tiny_base))
    assert card.metrics["runs"] == again["runs"] and card.method == "sac"
    assert again["fingerprints"]["adapter_sha256"]["sac"] != results["fingerprints"]["adapter_sha256"]["sac"]

    dataclasses.replace(card, calibration={"5": {"fallback": -1.0}}).write(out)
    repeated = script(*same, *dev)
    assert repeated.returncode == 0, repeated.stderr[-3000:]
    after = adapter.Card.read(out)
    assert after.calibration == {"5": {"fallback": -1.0}} and after.metrics == card.metrics

    nowhere = script(*same, "--dev", "qa/none.dev.jsonl.gz")
    assert nowhere.returncode == 2 and "qa/none.dev.jsonl.gz; name others by --dev" in nowhere.stderr


def test_the_count_of_a_stage():
    stage = {"objective": "qa", "steps_done": 7, "examples": 50, "tokens": 4000, "seconds": 2.0}
    got = speed.speed_of(stage, 10**9, 200.0)
    assert (got.examples_per_s, got.tokens_per_s, got.model_tflops, got.share_of_peak) == (25.0, 2000.0, 12.0, 0.06)
    assert speed.speed_of(stage, 10**9, None).share_of_peak is None
    assert speed.speed_of(stage | {"objective": "salience"}, 10**9, 200.0).model_tflops == 0.0


def test_parameters_are_those_of_the_blocks(tiny_base):
    model = tiny_llama()
    assert speed.block_parameters(tiny_base) == sum(p.numel() for p in model.model.parameters()) - 259 * 48


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", 181.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_name(name, peak):
    assert speed.known_peak(name) == peak
    assert speed.peak_of(torch.device("cpu")) == ("cpu", None)
