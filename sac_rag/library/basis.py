"""In which axes the transform codec stores memories: fitted to an adapter once, kept in each library made with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import LibraryCorrupt, MemoryInvalid

UNIT = 127
"""What 1 is among int8 axes."""
_MOST = 256 << 20
MOST_HEADS = 1 << 14
"""Heads of all layers: more than any model has. What a memory in a basis may take follows from them."""
_LARGEST = 1e20
"""No step is larger: what 32-bit integers make of it is finite."""


@dataclass(frozen=True)
class Basis:
    """What the memories of one adapter are coded in.

    axes: (2, layers, kv_heads, head_dim, head_dim), keys then values; its columns, the most varied first, are
    orthonormal up to rounding. int8 in units of 1 / 127; float16 in libraries of before.
    means: (2, layers, kv_heads, head_dim) float16. steps: (2,) float32, of keys and of values.
    """

    axes: torch.Tensor
    means: torch.Tensor
    steps: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, kv_heads, head_dim)."""
        layers, heads, dim = self.means.shape[1:]
        return layers, heads, dim

    @property
    def whole(self) -> bool:
        """Whether the axes are integers."""
        return self.axes.dtype == torch.int8

    @property
    def scales(self) -> torch.Tensor:
        """What a number of `axes` times an integer of a memory stands for, (2,) float32, of keys and of values."""
        return self.steps / UNIT if self.whole else self.steps

    @classmethod
    def fit(cls, memories: Iterable[AnchorKV], step: float = 1.0) -> Basis:
        """Principal axes of each head over `memories`. step: in standard deviations of all keys, and of all values.

        Raises MemoryInvalid without memories, or when their shapes differ.
        """
        sums: list[torch.Tensor] = []
        for memory in memories:
            kv = torch.stack([memory.keys, memory.values]).detach().to("cpu", torch.float64)
            shape = (*memory.counts.shape, kv.shape[2])
            if not sums:
                sums = [kv.new_zeros(shape[:2]), kv.new_zeros(2, *shape), kv.new_zeros(2, *shape, kv.shape[2])]
            if sums[1].shape[1:] != shape:
                raise MemoryInvalid(f"memories of {shape} and of {tuple(sums[1].shape[1:])} have no basis in common")
            sums[0] += memory.counts
            first, second = sums[1].flatten(1, 2), sums[2].flatten(1, 2)
            for run, part in enumerate(kv.split(memory.counts.flatten().tolist(), dim=1)):
                first[:, run] += part.sum(1)
                second[:, run] += part.transpose(1, 2) @ part
        if not sums:
            raise MemoryInvalid("a basis is fitted on memories; give at least one")
        slots, first, second = sums
        n = slots.clamp_min(1)[None, :, :, None]
        means = first / n
        spread = second / n[..., None] - means[..., None] * means[..., None, :]
        axes = torch.linalg.eigh(spread)[1].flip(-1)
        variance = (spread.diagonal(dim1=-2, dim2=-1).mean(-1) * slots).sum((1, 2)) / slots.sum()
        return cls(whole_axes(axes), means.half(), (step * variance.clamp_min(1e-12).sqrt()).float())

    def to_bytes(self) -> bytes:
        from safetensors.torch import save

        return save({"axes": self.axes.contiguous(), "means": self.means.contiguous(), "steps": self.steps})

    @classmethod
    def from_bytes(cls, data: bytes) -> Basis:
        """Raises LibraryCorrupt unless the tensors are those of a basis, all finite."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if len(data) > _MOST:
            raise LibraryCorrupt(f"a codec's basis has {len(data):,} bytes; at most {_MOST:,} are read")
        try:
            found = load(data)
        except SafetensorError as error:
            raise LibraryCorrupt(f"a codec's basis does not parse: {error}") from error
        if set(found) != {"axes", "means", "steps"}:
            raise LibraryCorrupt(f"a codec's basis has the tensors {sorted(found)}, not axes, means and steps")
        axes, means, steps = found["axes"], found["means"], found["steps"]
        shapes = axes.ndim == 5 and axes.shape == (2, *axes.shape[1:3], axes.shape[4], axes.shape[4])
        dtypes = (means.dtype, steps.dtype) == (torch.float16, torch.float32)
        kinds = axes.dtype in (torch.int8, torch.float16)
        if not (shapes and dtypes and kinds and means.shape == axes.shape[:4] and steps.shape == (2,)):
            raise LibraryCorrupt("a codec's basis has axes, means or steps of other shapes or dtypes than a basis has")
        if not 0 < means.shape[1] * means.shape[2] <= MOST_HEADS or not axes.numel():
            raise LibraryCorrupt(f"a codec's basis is of {tuple(axes.shape[1:])}, which no model has")
        finite = all(bool(torch.isfinite(t).all()) for t in found.values())
        if not (finite and bool((steps > 0).all()) and bool((steps < _LARGEST).all())):
            raise LibraryCorrupt("a codec's basis holds NaN, Inf or a step that is not above 0, or beyond all use")
        return cls(axes, means, steps)


def whole_axes(axes: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns as int8, in units of 1 / 127."""
    return (axes * UNIT).round().clamp(-UNIT, UNIT).to(torch.int8)


@cache
def multiplies_int8() -> bool:
    """Whether torch's product of int8 matrices is there and exact: some kernels saturate where a CPU lacks VNNI."""
    signs = torch.randint(0, 2, (80, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    left, right = (signs * UNIT).to(torch.int8), torch.full((64, 64), UNIT, dtype=torch.int8)
    right[:, ::2] = -UNIT
    try:
        found = [torch._int_mm(left[:n], right) for n in (1, 17, 80)]
    except (AttributeError, RuntimeError):
        return False
    return all(torch.equal(f.float(), left[: len(f)].float() @ right.float()) for f in found)


class Product:
    """int8 matrices times int8 or float ones. Of integers it is exact below 2^24, so that its bits are the same on any
    machine, and in any batch."""

    def __init__(self) -> None:
        self._sums = torch.empty(0, 0, dtype=torch.int32)

    def __call__(self, left: Sequence[torch.Tensor], right: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """left: several of (rows, n). right: (len(left), n, columns). out: (all rows, columns) float32, scale times the
        products."""
        sizes = [len(part) for part in left]
        if right.dtype != torch.int8 or not multiplies_int8():
            for part, factor, product in zip(left, right.float(), out.split(sizes), strict=True):
                torch.mm(part.float(), factor, out=product)
            out.mul_(scale)
            return
        if len(self._sums) < len(out):
            self._sums = torch.empty(out.shape, dtype=torch.int32)
        sums = self._sums[: len(out)]
        for part, factor, product in zip(left, right, sums.split(sizes), strict=True):
            torch._int_mm(part, factor, out=product)
        torch.mul(sums, scale, out=out)
