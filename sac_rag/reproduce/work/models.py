"""A base model with fewer layers than another, for sizes that cannot be had. It is not trained on: a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sac_rag.models.quiet import quiet
from sac_rag.models.sources import resolve_base
from sac_rag.reproduce.place import MODELS, Place
from sac_rag.reproduce.specs import Model


def compute(spec: Model, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]) -> dict[str, Any]:
    """Save the first layers of a model, its embeddings and its head as a model of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, folder = resolve_base(place.model(spec.of)), place.folder(MODELS, spec)
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    whole = config.num_hidden_layers
    config.num_hidden_layers = max(1, round(spec.share * whole))
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype="auto", use_safetensors=True, local_files_only=True
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    numbers = sum(p.numel() for p in model.parameters())
    return {"layers": config.num_hidden_layers, "of_layers": whole, "parameters": numbers}
