"""The CPU's bf16 kernels: weights laid out for them beforehand, and whether they sum a row alike in any number."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROWS = 16
"""Rows for which the layout is chosen: a question or a step of a few answers."""
NUMBERS = (2, 16, 33, 64, 130)
"""Numbers of rows that are compared, the last with each of the others."""


@dataclass(frozen=True)
class Packed:
    """A weight (outputs, inputs) in the kernels' own layout; for inference."""

    layout: torch.Tensor

    def times(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(rows, inputs) -> (rows, outputs), the same bits as F.linear."""
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.layout, bias, "none", [], "")


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Packed | torch.Tensor:
    """The weight packed, as a second copy; itself where this torch or device has no such kernels, or others' bits.

    bias: (outputs,), what is added to the products wherever it is used.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return weight
    try:
        packed = Packed(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS))
        x = torch.linspace(-1, 1, 2 * weight.shape[1]).view(2, -1).to(weight.dtype)
        return packed if torch.equal(packed.times(x, bias), F.linear(x, weight, bias)) else weight
    except (AttributeError, RuntimeError):  # operators of torch's compiler, without a promise to stay
        return weight


def is_batch_invariant(weights: Iterable[torch.Tensor]) -> bool:
    """Whether a row times these weights, (outputs, inputs), has the same bits in any number of rows.

    Kernels that use AMX have several ways to sum, which they choose between by that number.
    """
    for weight in weights:
        x = torch.linspace(-1, 1, NUMBERS[-1] * weight.shape[1], device=weight.device).view(NUMBERS[-1], -1)
        x = x.sin().to(weight.dtype)
        whole = F.linear(x, weight)
        if not all(torch.equal(F.linear(x[:n], weight), whole[:n]) for n in NUMBERS):
            return False
    return True
