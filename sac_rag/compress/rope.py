"""Rotary positions as Llama uses them (RoFormer, eq. 34; halves layout), exact under scaling such as llama3's."""

from __future__ import annotations

import torch


def angles(positions: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Angles of shape (..., head_dim) in fp32 for integer positions of shape (...,)."""
    half = positions.to(torch.float32)[..., None] * inv_freq.to(torch.float32)
    return torch.cat((half, half), dim=-1)


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x of shape (..., head_dim) by precomputed cosines and sines of a broadcastable shape."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rotate(
    x: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    scaling: float = 1.0,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Rotate keys or queries x of shape (..., tokens, head_dim) to `positions` of shape (tokens,), in fp32.

    The result has `dtype`, or that of x. `scaling` is the attention factor of YaRN-like schemes, 1 for Llama.
    """
    at, places = positions.to(x.device), positions.to(x.device)
    if at.numel() > (span := int(at.max()) - int(at.min()) + 1 if at.numel() else 0):
        # Runs of many heads have the same few positions: each angle once.
        places = torch.arange(span, device=x.device) + at.min()
    a = places.to(torch.float32)[:, None] * inv_freq.to(device=x.device, dtype=torch.float32)
    cos, sin = a.cos() * scaling, a.sin() * scaling
    if places is not at:
        cos, sin = (t.index_select(0, at - places[0]) for t in (cos, sin))  # ten times as fast as t[...] on a CPU
    left, right = x.to(torch.float32).chunk(2, dim=-1)
    # By halves and fused: loading a memory is memory traffic, and this is most of it.
    turned = torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)
    dtype = dtype or x.dtype
    return torch.cat([t.to(dtype) for t in turned], dim=-1)
