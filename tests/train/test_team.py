"""Two processes train what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from sac_rag.compress.adapter import read_tensors
from sac_rag.errors import ConfigError
from sac_rag.models import loading
from sac_rag.models.loading import choose_device
from sac_rag.train.team import Team

RUN = """
import sys
from pathlib import Path
from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.adapter import Card
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.sac import Sac
from sac_rag.train.data import Mixture, Source
from sac_rag.train.objectives import configured
from sac_rag.train.loop import train
from tests.conftest import byte_tokenizer, tiny_llama

data, out = sys.argv[1:]
method = Sac(Backbone(tiny_llama(), byte_tokenizer(), LoraSpec(4, 8.0)), PromptLayout(prefix="x"))
mixture = Mixture([Source(data, method.backbone.tokens)])
sizes = {"step_tokens": 150, "accumulate": 3, "first_context": 80, "max_context": 80}
config = configured(steps=3, warmup=1, learning_rate=1e-2, **sizes)
train(method, mixture, config, Card("tiny", "0", "sac", (5.0,)), Path(out))
"""


@pytest.mark.minutes
def test_two_processes_equal_one(tmp_path):
    data, script = tmp_path / "d.jsonl", tmp_path / "run.py"
    rows = [
        {"context": f"Ada number {i} went to Rome by boat.", "qas": [{"question": "Who?", "answers": [f"Ada {i}"]}]}
        for i in range(20)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    script.write_text(RUN)
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        done = subprocess.run(
            [*launcher, str(script), str(data), str(tmp_path / name)],
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
    one, two = (read_tensors(tmp_path / n / "adapter.safetensors") for n in ("one", "two"))
    moved = 0
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-3, rtol=2e-2)
        moved += "lora_B" in name and bool(tensor.abs().max() > 1e-3)
    assert moved, "nothing was trained"
    lines = [len((tmp_path / n / "metrics.jsonl").read_text().splitlines()) for n in ("one", "two")]
    assert lines == [3, 3]


def test_shares():
    assert list(Team(1, 2).mine(5)) == [1, 3] and list(Team().mine(3)) == [0, 1, 2]
    with pytest.raises(ConfigError, match="accumulate is 1 for 2 processes"):
        Team(0, 2).mine(1)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.torch, "empty", lambda *size, device: None)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
