"""Low-rank adaptation of linear layers (Hu et al., 2021), as peft computes and names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

NAME = "default"
"""What the one adaptation of a layer is called in the names of its parameters."""


Held = tuple[nn.Parameter, nn.Parameter]
"""The weights A and B of a layer's LoRA."""


class LoraLinear(nn.Module):
    """A linear layer W that adds scaling * B A x to W x. A starts as a linear layer's weight does, B at zero.

    A, (rank, inputs), and B, (outputs, rank), are fp32 on the device of W; A starts at values that W's dtype holds.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, held: Held | None = None) -> None:
        """held: A and B as they are to be, in place of fresh ones."""
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.scaling = {NAME: alpha / rank}
        shapes = (base.in_features, rank), (rank, base.out_features)
        down, up = (nn.Linear(*shape, bias=False, device="meta" if held else None) for shape in shapes)
        if held:
            down.weight, up.weight = held
        else:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
            like: torch.Tensor = base.weight
            down, up = (layer.to(device=like.device, dtype=like.dtype).float() for layer in (down, up))
        self.lora_A, self.lora_B = nn.ModuleDict({NAME: down}), nn.ModuleDict({NAME: up})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs), in the dtype of x."""
        down, up = self.lora_A[NAME], self.lora_B[NAME]
        low = up(down(x.float()))
        return (self.base_layer(x) + low * self.scaling[NAME]).to(x.dtype)


def layers_of(model: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Whole names of the linear layers whose last name is among the targets, in their order."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if name.rpartition(".")[2] in targets]


def held_of(model: nn.Module, names: Sequence[str], rank: int) -> dict[str, Held]:
    """Room for the LoRA of layers of a model, by their names: fp32, without values until some are loaded."""
    found = {}
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear), name
        shapes = (rank, layer.in_features), (layer.out_features, rank)
        down, up = (nn.Parameter(torch.empty(shape, device=layer.weight.device)) for shape in shapes)
        found[name] = down, up
    return found


def adapt(
    model: nn.Module, names: Sequence[str], rank: int, alpha: float, held: Mapping[str, Held] | None = None
) -> nn.Module:
    """The model itself, its layers of these names with a `LoraLinear` around each: fresh ones, or what is held."""
    for name in names:
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, LoraLinear(getattr(owner, last), rank, alpha, held[name] if held else None))
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
