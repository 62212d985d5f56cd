"""Seconds to compress a batch of sub-contexts: several systems in turn, in one run, to compare ratios alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Latency
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.fresh import fresh


def compute(
    spec: Latency, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Seconds of each round by system (all but the first, which warms up), and their medians.

    Weights are untrained: what they hold does not change what they cost.
    """
    model, tokenizer = place.base(spec.model)
    size = model.config.vocab_size
    chunks = [[(7 * i + j) % size for j in range(spec.tokens)] for i in range(spec.batch)]
    methods = {name: fresh(system_of(name), model, tokenizer, spec.lora) for name in spec.systems}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(spec.rounds + 1):
        for name, method in methods.items():
            began = time.perf_counter()
            method.compress(chunks, spec.ratio, batch_tokens=spec.batch * spec.tokens)
            if place.torch_device.type == "cuda":
                torch.cuda.synchronize(place.torch_device)
            seconds[name].append(time.perf_counter() - began)
        listen(round_ + 1, spec.rounds + 1)
    seconds = {name: found[1:] for name, found in seconds.items()}
    return {
        "seconds": seconds,
        "medians": {name: median(found) for name, found in seconds.items()},
    }
