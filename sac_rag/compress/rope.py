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
    places, which = positions.to(x.device), None
    if places.numel() > (span := int(places.max() - places.min()) + 1 if places.numel() else 0):
        # Runs of many heads have the same few positions: each angle once.
        first = places.min()
        places, which = first + torch.arange(span, device=x.device), places - first
    a = places.to(torch.float32)[:, None] * inv_freq.to(device=x.device, dtype=torch.float32)
    cos, sin = a.cos() * scaling, a.sin() * scaling
    if which is not None:
        cos, sin = cos.index_select(0, which), sin.index_select(0, which)  # on a CPU ten times as fast as cos[which]
    left, right = x.to(torch.float32).chunk(2, dim=-1)
    # By halves and fused: loading a memory is memory traffic, and this is most of it.
    turned = torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)
    dtype = dtype or x.dtype
    return torch.cat([t.to(dtype) for t in turned], dim=-1)
