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


class Rotation:
    """Turns rows to positions, each angle computed once."""

    def __init__(self, positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0) -> None:
        """positions: (rows,), on the device of what is turned. scaling: the attention factor of YaRN-like schemes, 1
        for Llama."""
        places, self._which = positions, None
        if places.numel() > (span := int(places.max() - places.min()) + 1 if places.numel() else 0):
            # Runs of many heads have the same few positions.
            first = places.min()
            places, self._which = first + torch.arange(span, device=places.device), places - first
        a = places.to(torch.float32)[:, None] * inv_freq.to(device=places.device, dtype=torch.float32)
        self._cos, self._sin = a.cos() * scaling, a.sin() * scaling

    def __call__(self, x: torch.Tensor, dtype: torch.dtype, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """x of shape (..., rows, head_dim), turned in fp32 to the positions of these rows, in `dtype`."""
        which = self._which
        if isinstance(rows, torch.Tensor):
            which = rows if which is None else which.index_select(0, rows)
        elif which is not None:
            which = which[rows]
        if which is None:
            cos, sin = self._cos[rows], self._sin[rows]
        else:  # on a CPU ten times as fast as cos[which]
            cos, sin = (t.index_select(0, which) for t in (self._cos, self._sin))
        left, right = x.to(torch.float32).chunk(2, dim=-1)
        # By halves and fused: loading a memory is memory traffic, and this is most of it.
        turned = torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)
        return torch.cat([t.to(dtype) for t in turned], dim=-1)


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0) -> torch.Tensor:
    """Rotate keys or queries x of shape (..., tokens, head_dim) to `positions` of shape (tokens,), in fp32; the result
    has the dtype of x. scaling: as of `Rotation`."""
    return Rotation(positions.to(x.device), inv_freq, scaling)(x, x.dtype)
