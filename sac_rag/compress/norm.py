"""Root mean square norms (Zhang, Sennrich 2019), with a backward pass of their own where a CPU trains through them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x of shape (..., width) over the root of its mean square, times weight (width,): the bits of F.rms_norm.

    torch makes the gradient out of some twenty passes over x in fp32, which took a sixth of a training step.
    """
    if x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu" and not weight.requires_grad:
        out: torch.Tensor = _Frozen.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out
    return F.rms_norm(x, weight.shape, weight, eps)


class _Frozen(torch.autograd.Function):
    """The norm of weights that are not trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:  # type: ignore[override]
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        weighted, wide = grad * weight.to(torch.float32), x.to(torch.float32)
        along = torch.linalg.vecdot(weighted, wide).unsqueeze(-1) * scale.pow(3) / -x.shape[-1]
        return torch.addcmul(weighted.mul_(scale), wide, along).to(x.dtype), None, None
