"""The forward pass of a BERT (Devlin et al., 2018), which most small embedders are, without transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sac_rag import foreign

FIELDS = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
UNUSED = ("pooler.", "embeddings.position_ids")
"""Weights that a mean or the first state of a text does not need."""
_LAYER = {
    "attention.self.query": ("hidden", "hidden"),
    "attention.self.key": ("hidden", "hidden"),
    "attention.self.value": ("hidden", "hidden"),
    "attention.output.dense": ("hidden", "hidden"),
    "intermediate.dense": ("inner", "hidden"),
    "output.dense": ("hidden", "inner"),
}
"""Linear layers of a layer: outputs, inputs."""


class Bert:
    """States of packed texts. `load_bert` makes one."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        self._weights, self._layers = weights, range(config["num_hidden_layers"])
        self._heads, self._epsilon = config["num_attention_heads"], config.get("layer_norm_eps", 1e-12)

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Last states (texts, tokens, width) of token ids (texts, tokens); mask: 1 for a token, 0 for padding."""
        w, (texts, tokens) = self._weights, ids.shape
        words, kinds, places = (w[f"embeddings.{n}_embeddings.weight"] for n in ("word", "token_type", "position"))
        h = self._normed("embeddings", words[ids] + kinds[0] + places[:tokens])
        seen = None if bool(mask.all()) else mask.bool()[:, None, None].expand(-1, 1, tokens, -1)
        for index in self._layers:
            layer = f"encoder.layer.{index}"
            q, k, v = (
                self._linear(f"{layer}.attention.self.{n}", h).view(texts, tokens, self._heads, -1).transpose(1, 2)
                for n in ("query", "key", "value")
            )
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            attended = attended.transpose(1, 2).reshape(texts, tokens, -1)
            h = self._normed(f"{layer}.attention.output", self._linear(f"{layer}.attention.output.dense", attended) + h)
            inner = F.gelu(self._linear(f"{layer}.intermediate.dense", h))
            h = self._normed(f"{layer}.output", self._linear(f"{layer}.output.dense", inner) + h)
        return h

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self._epsilon)


def load_bert(folder: Path, device: Any) -> Bert | None:
    """The BERT in a folder, its weights mapped, in fp32; None for a model of another kind, or with other weights.

    Raises OSError, ValueError or SafetensorError for files that cannot be read.
    """
    from safetensors import safe_open

    config, path = foreign.read_json(folder / "config.json"), folder / "model.safetensors"
    if not isinstance(config, dict) or not _is_plain(config) or not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(UNUSED)]  # noqa: SIM118  it is no mapping
        weights = {name: file.get_tensor(name) for name in names}
    if {name: tuple(weight.shape) for name, weight in weights.items()} != _shapes(config):
        return None
    return Bert(config, {name: weight.to(device, torch.float32) for name, weight in weights.items()})


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a BERT of which nothing is unusual."""
    usual = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    if config.get("model_type") != "bert" or any(config.get(name, value) != value for name, value in usual.items()):
        return False
    numbers = [config.get(name) for name in FIELDS]
    return all(type(n) is int and n > 0 for n in numbers) and config["hidden_size"] % config["num_attention_heads"] == 0


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    sizes = {"hidden": width, "inner": config["intermediate_size"]}
    norms = ["embeddings"]
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config.get("max_position_embeddings", 512), width),
        "embeddings.token_type_embeddings.weight": (config.get("type_vocab_size", 2), width),
    }
    for layer in (f"encoder.layer.{index}" for index in range(config["num_hidden_layers"])):
        norms += [f"{layer}.attention.output", f"{layer}.output"]
        for name, (outputs, inputs) in _LAYER.items():
            found[f"{layer}.{name}.weight"] = (sizes[outputs], sizes[inputs])
            found[f"{layer}.{name}.bias"] = (sizes[outputs],)
    return found | {f"{norm}.LayerNorm.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
