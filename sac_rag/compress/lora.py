"""Low-rank adaptation of linear layers (Hu et al., 2021), as peft computes and names it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

NAME = "default"
"""What the one adaptation of a layer is called in the names of its parameters."""


class _Empty(nn.Linear):
    """A linear layer whose weight holds no values until some are loaded."""

    def reset_parameters(self) -> None:
        """Nothing is drawn: that takes as long as all else of an adapter."""


class LoraLinear(nn.Module):
    """A linear layer W that adds scaling * B A x to W x. A starts as a linear layer's weight does, B at zero.

    A, (rank, inputs), and B, (outputs, rank), are fp32 on the device of W; A starts at values that W's dtype holds.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, *, starts: bool = True) -> None:
        """starts: else A and B hold no values until some are loaded."""
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = {NAME: alpha / rank}
        shapes = (base.in_features, rank), (rank, base.out_features)
        down, up = ((nn.Linear if starts else _Empty)(*shape, bias=False) for shape in shapes)
        if starts:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        like: torch.Tensor = base.weight
        self.lora_A, self.lora_B = (
            nn.ModuleDict({NAME: layer.to(device=like.device, dtype=like.dtype).float()}) for layer in (down, up)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of x."""
        down, up = self.lora_A[NAME], self.lora_B[NAME]
        low = up(down(x.float()))
        return (self.base_layer(x) + low * self.scaling[NAME]).to(x.dtype)


def layers_of(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Whole names of the linear layers whose last name is among the targets, in their order."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if name.rpartition(".")[2] in targets]


def adapt(model: nn.Module, names: Sequence[str], rank: int, alpha: float, *, starts: bool = True) -> nn.Module:
    """The model itself, its layers of these names with a `LoraLinear` around each. starts: as there."""
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, LoraLinear(getattr(owner, last), rank, alpha, starts=starts))
    return model


def adapt_by_peft(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> nn.Module:
    """As `adapt`, by peft's own layers, with parameters in fp32: the same names, start and products."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(names))  # type: ignore[arg-type]
    made = inject_adapter_in_model(config, model, adapter_name=NAME)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return made
