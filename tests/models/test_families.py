"""Which models are read, and which are refused by name: one check for folders, hub ids, files and loaded models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sac_rag.compress.backbone import Backbone
from sac_rag.errors import ModelError
from sac_rag.families import FAMILIES, family_of
from sac_rag.models import sources
from tests.conftest import byte_tokenizer, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_each_family_is_a_base_model(family: str, cache: Path, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path / family)
    byte_tokenizer().save_pretrained(tmp_path / family)
    assert sources.resolve_base(str(tmp_path / family)) == tmp_path / family


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gemma2"}, "x is a 'gemma2' model; sac-rag reads Llama, Mistral, Qwen2 or Qwen3"),
        ({"model_type": ["llama"]}, "model_type 'llama', 'mistral', 'qwen2', 'qwen3'"),
        ([], "x is a None model"),
        # The first Mistral has a window, also where its config does not name it.
        ({"model_type": "mistral", "max_position_embeddings": 32768}, "Mistral .* sliding window of 4096 tokens"),
        ({"model_type": "mistral", "sliding_window": 512}, "window of 512"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 40, "max_window_layers": 20},
            "Qwen2 .* sliding window of 4096",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
            "Qwen3 .* sliding window",
        ),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE of type 'dynamic'"),
        ({"model_type": "qwen3", "rope_parameters": {"rope_type": "longrope"}}, "RoPE of type 'longrope'"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_what_would_be_misread_is_refused_by_name(config: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        family_of(config, "x")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 4096},
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28},
        {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 24, "max_window_layers": 24},
        {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
        {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}},
        {"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}},
    ],
)
def test_what_is_never_active_refuses_nothing(config: dict[str, Any]) -> None:
    assert family_of(config, "x") is FAMILIES[config["model_type"]]


def test_a_loaded_model_is_checked_as_its_folder_is() -> None:
    with pytest.raises(ModelError, match="Mistral model whose layers attend a sliding window of 64 tokens"):
        Backbone(tiny_model("mistral", sliding_window=64), byte_tokenizer())
    odd = tiny_model("llama")
    odd.model.layers[0].self_attn.q_norm = odd.model.norm  # as a later release might build it
    with pytest.raises(ModelError, match=r"attention of this Llama model is not as expected \(q_norm in or out\)"):
        Backbone(odd, byte_tokenizer())
