"""Seconds to compress a batch of sub-contexts: several systems in turn, in one run, to compare ratios alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.methods import METHODS
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Latency
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.fresh import fresh
from sac_rag.reproduce.work.passes import APPENDED, write


def compute(
    spec: Latency, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Seconds of each round by system (all but the first, which warms up), medians, and whether a bare pass stood in.

    Weights are untrained: what they hold does not change what they cost.
    """
    model, tokenizer = place.base(spec.model)
    size = model.config.vocab_size
    chunks = [[(7 * i + j) % size for j in range(spec.tokens)] for i in range(spec.batch)]
    ways = {name: _way(name, model, tokenizer, spec) for name in spec.systems}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(spec.rounds + 1):
        for name, compress in ways.items():
            began = time.perf_counter()
            with torch.inference_mode():
                compress(chunks)
            if place.torch_device.type == "cuda":
                torch.cuda.synchronize(place.torch_device)
            seconds[name].append(time.perf_counter() - began)
        listen(round_ + 1, spec.rounds + 1)
    seconds = {name: found[1:] for name, found in seconds.items()}
    return {
        "seconds": seconds,
        "medians": {name: median(found) for name, found in seconds.items()},
        "stood_in": [name for name in ways if system_of(name).method not in METHODS],
    }


def _way(name: str, model: Any, tokenizer: Any, spec: Latency) -> Callable[[list[list[int]]], object]:
    """What compresses a batch in one pass; the bare pass of appended tokens, where a method is not registered."""
    system = system_of(name)
    if system.method not in METHODS:
        backbone = Backbone(model, tokenizer, LoraSpec(**dict(spec.lora)))
        return lambda chunks: write(backbone, APPENDED, [torch.tensor(c) for c in chunks], spec.ratio)
    method = fresh(system, model, tokenizer, spec.lora)
    return lambda chunks: method.compress(chunks, spec.ratio, batch_tokens=spec.batch * spec.tokens)
