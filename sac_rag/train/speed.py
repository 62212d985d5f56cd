"""How fast training ran: examples and tokens a second, and the share of the card's peak."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sac_rag.train.objectives import OBJECTIVES

PEAKS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
}
"""Words of a device's name -> dense bf16 TFLOP/s with fp32 sums, by the makers' data sheets; the first that fits."""


@dataclass(frozen=True)
class Speed:
    """One stage of training, as its card tells it."""

    objective: str
    steps: int
    examples: int
    examples_per_s: float
    tokens_per_s: float
    """Tokens written and read."""
    model_tflops: float
    """6 * parameters * tokens / second / 1e12."""
    share_of_peak: float | None
    """Of the card's dense bf16 peak; None where the card is not known."""


def speed_of(stage: Mapping[str, Any], parameters: int, peak: float | None) -> Speed:
    """Of a stage in a card's `training`. parameters: of `block_parameters`. peak: TFLOP/s of `peak_of`.

    The count is the usual one, 6 FLOPs per parameter and token: 2 forward, 4 backward. The base is frozen, so the
    backward pass really needs about 2 of the 4: the work done is about two thirds of what is counted. What is left out
    would add to it: attention, the output head, a teacher. Fitting a selector uses none of the blocks.
    """
    parameters = parameters if OBJECTIVES.load(stage["objective"]).runs_model else 0
    seconds = max(float(stage["seconds"]), 1e-9)
    flops = 6 * parameters * stage["tokens"] / seconds / 1e12
    return Speed(
        objective=stage["objective"],
        steps=stage["steps_done"],
        examples=stage["examples"],
        examples_per_s=stage["examples"] / seconds,
        tokens_per_s=stage["tokens"] / seconds,
        model_tflops=flops,
        share_of_peak=flops / peak if peak else None,
    )


def block_parameters(base: Path) -> int:
    """Parameters of a base model's blocks: all but the token embedding and the output head. No weights are loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(p.numel() for p in model.parameters() if id(p) not in ends)


def peak_of(device: torch.device) -> tuple[str, float | None]:
    """(name, dense bf16 TFLOP/s) of a device; None for a card that is not in the table, and for a CPU."""
    if device.type != "cuda":
        return device.type, None
    name = torch.cuda.get_device_name(device)
    return name, known_peak(name)


def known_peak(name: str) -> float | None:
    """TFLOP/s of a card by its name."""
    return next((peak for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)
