"""A decoder without transformers' modelling code: its weights, mapped from their files, in modules of the same names.

It computes nothing: `compress.backbone` walks through its modules. What is read otherwise than as `families` says, such
as weights that another library packed, is left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from sac_rag.families import family_of, weights_of
from sac_rag.models.fingerprints import weight_files
from sac_rag.models.notes import noted

NUMBERS = (torch.bfloat16, torch.float16, torch.float32)


class Config(SimpleNamespace):
    """The settings of a model as transformers reads them, with every default."""

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Norm(nn.Module):
    """The weight of an RMS norm, with what keeps it from dividing by zero."""

    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(weight, requires_grad=False), epsilon


class Linear(nn.Linear):
    """A linear layer that is given its weights, so that none are drawn."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """Likewise."""

    def reset_parameters(self) -> None:
        pass


class Rotary(nn.Module):
    """The frequencies of RoPE, (head_dim / 2,) in fp32, and what cosines and sines are multiplied by."""

    def __init__(self, frequencies: list[float], scaling: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", torch.tensor(frequencies), persistent=False)
        self.attention_scaling = scaling


class Decoder(nn.Module):
    """The modules of a model, named as transformers names them, its config, and where its texts end."""

    def __init__(self, config: Config, weights: Mapping[str, torch.Tensor], rotary: Rotary, ends: list[int]) -> None:
        super().__init__()
        self.config, self.generation_config = config, SimpleNamespace(eos_token_id=ends)
        for name, child in _nested(weights, config.rms_norm_eps).named_children():
            self.add_module(name, child)
        self.model: Any
        self.model.add_module("rotary_emb", rotary)
        if config.tie_word_embeddings:
            self.lm_head = _leaf("lm_head", {"weight": self.model.embed_tokens.weight}, 0.0)

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.model.embed_tokens
        return found

    @property
    def reference(self) -> Any:
        """transformers' own model over the same weights, made anew: what gates and tests compare with."""
        import transformers

        config, like = transformers.AutoConfig.for_model(**self.config.to_dict()), self.model.embed_tokens.weight
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=like.dtype)
        model.load_state_dict(self.state_dict(), assign=True)
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(like.device)
        return model.eval().requires_grad_(False)


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Decoder | None:
    """The decoder of a model's folder. None where its weights are not, name by name, those of its family.

    Raises OSError, ValueError, KeyError or SafetensorError for files that cannot be read, ModelError for a model of no
    known family.
    """
    told = noted("base", folder, lambda: _asked(folder))
    if told["config"].get("quantization_config"):
        return None
    weights = _mapped(folder, weights_of(told["config"]))
    if weights is None:
        return None
    placed = {name: weight.to(device, dtype) for name, weight in weights.items()}
    rotary = Rotary(told["frequencies"], told["scaling"]).to(device)
    return Decoder(Config(**told["config"]), placed, rotary, told["ends"]).eval()


def _asked(folder: Path) -> dict[str, Any]:
    """What transformers says of a folder: config, RoPE, ids that end a text."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    family_of(config.to_dict(), str(folder))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    rotary = type(model.model.rotary_emb)(config)
    try:
        generation = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        generation = model.generation_config
    ends = generation.eos_token_id
    return {
        "config": config.to_dict(),
        "frequencies": rotary.inv_freq.float().tolist(),
        "scaling": float(rotary.attention_scaling),
        "ends": [] if ends is None else [ends] if isinstance(ends, int) else list(ends),
    }


def _mapped(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor] | None:
    """The weights of a folder, in the order of `shapes`, as maps of their files; None where they are others."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    # Frequencies that early Llamas were saved with: they follow from the config.
    found = {name: weight for name, weight in found.items() if not name.endswith("rotary_emb.inv_freq")}
    if {name: tuple(weight.shape) for name, weight in found.items()} != dict(shapes):
        return None
    if not all(weight.dtype in NUMBERS for weight in found.values()):
        return None
    return {name: found[name] for name in shapes}


def _nested(weights: Mapping[str, torch.Tensor], epsilon: float, name: str = "") -> nn.Module:
    """Modules that are nested as the names of weights are, which follow one another."""
    if not any("." in inner for inner in weights):
        return _leaf(name, weights, epsilon)
    children = {
        child: _nested({inner.partition(".")[2]: weights[inner] for inner in inners}, epsilon, child)
        for child, inners in ((c, list(found)) for c, found in groupby(weights, lambda inner: inner.partition(".")[0]))
    }
    if all(child.isdigit() for child in children):
        return nn.ModuleList(children.values())
    module = nn.Module()
    for child, inner in children.items():
        module.add_module(child, inner)
    return module


def _leaf(name: str, weights: Mapping[str, torch.Tensor], epsilon: float) -> nn.Module:
    weight = weights["weight"]
    if weight.ndim == 1:
        return Norm(weight, epsilon)
    outputs, inputs = weight.shape
    module: nn.Module
    if "embed" in name:
        module = Embedding(outputs, inputs, device="meta")
    else:
        module = Linear(inputs, outputs, "bias" in weights, device="meta")
    for kind, value in weights.items():
        own = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(module, kind, own)
    return module
