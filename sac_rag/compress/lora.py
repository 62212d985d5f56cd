"""Low-rank adaptation of linear layers (Hu et al., 2021), as peft computes and names it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

NAME = "default"
"""What the one adaptation of a layer is called in the names of its parameters."""


class LoraLinear(nn.Module):
    """A linear layer W that adds scaling * B A x to W x. A starts as a linear layer's weight does, B at zero.

    A, (rank, inputs), and B, (outputs, rank), are fp32 on the device of W; A starts at values that W's dtype holds.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = {NAME: alpha / rank}
        down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        device, dtype = base.weight.device, base.weight.dtype
        down, up = (layer.to(device, dtype).float() for layer in (down, up))
        self.lora_A, self.lora_B = nn.ModuleDict({NAME: down}), nn.ModuleDict({NAME: up})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of x."""
        down, up = self.lora_A[NAME], self.lora_B[NAME]
        low = up(down(x.to(down.weight.dtype)))
        return (self.base_layer(x) + low * self.scaling[NAME]).to(x.dtype)


def layers_of(model: nn.Module, targets: tuple[str, ...]) -> Iterator[tuple[nn.Module, str, str]]:
    """(parent, name in it, whole name) of the linear layers whose last name is among the targets, in their order."""
    for whole, module in model.named_modules():
        for name, child in module.named_children():
            if name in targets and isinstance(child, nn.Linear):
                yield module, name, f"{whole}.{name}" if whole else name
