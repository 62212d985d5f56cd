"""Half a byte a number, in groups of channels: the simple way to a quarter of bf16."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import MemoryInvalid
from sac_rag.library.codecs import memory_of, need, places_of, slots_of

GROUP = 32
"""Neighbouring channels of a slot that share a scale and a least value."""
_LARGEST = 6e4
"""A float16 holds it."""


class Int4:
    """Sixteen levels between the least and the largest number of each group of 32 channels of a slot.

    Decodes to float32; |error| <= scale / 2 up to the float16 in which scale and least value are stored: at most
    (largest - least) / 15 * (1/2 + 2^-6) + largest magnitude * 2^-10.
    """

    name = "int4"
    fitted = False

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        tensors = places_of(memory.validate())
        for name, t in (("key", memory.keys), ("value", memory.values)):
            x = t.detach().to("cpu", torch.float32)
            if float(x.abs().max()) > _LARGEST:
                raise MemoryInvalid(f"{name}s are too large for int4 (largest magnitude {x.abs().max().item():.3g})")
            dim = x.shape[1]
            groups = F.pad(x, (0, -dim % GROUP), mode="replicate").view(len(x), -1, GROUP)
            least = groups.amin(-1).half()
            scale = ((groups.amax(-1) - least.float()) / 15).clamp_min(0).half()
            steps = scale.float()
            steps = torch.where(steps == 0, torch.ones_like(steps), steps)[..., None]
            levels = ((groups - least.float()[..., None]) / steps).round().clamp(0, 15).to(torch.uint8)
            levels = levels.flatten(1)
            tensors[f"{name}s"] = levels[:, ::2] | levels[:, 1::2] << 4
            tensors[f"{name}_scales"], tensors[f"{name}_least"] = scale, least
            tensors["head_dim"] = torch.tensor([dim], dtype=torch.int32)
        return tensors

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        slots, _ = slots_of(tensors)
        width = need(tensors, "head_dim")
        if width.shape != (1,) or width.dtype != torch.int32 or not 0 < int(width[0]) < 1 << 16:
            raise MemoryInvalid(f"head_dim {tuple(width.shape)} {width.dtype} is malformed")
        dim, count = int(width[0]), slots.positions.numel()
        groups = -(-dim // GROUP)
        out = []
        for name in ("key", "value"):
            levels, parts = need(tensors, f"{name}s"), [need(tensors, f"{name}_{part}") for part in ("scales", "least")]
            if levels.shape != (count, groups * GROUP // 2) or levels.dtype != torch.uint8:
                found = f"int4 {name}s {tuple(levels.shape)} {levels.dtype}"
                raise MemoryInvalid(f"{found} do not fit {count} slots of {dim}")
            if any(p.shape != (count, groups) or p.dtype != torch.float16 for p in parts):
                raise MemoryInvalid(f"int4 {name} scales do not fit {count} slots of {groups} groups")
            whole = torch.stack((levels & 15, levels >> 4), dim=-1).view(count, groups, GROUP).float()
            scale, least = (p.float()[..., None] for p in parts)
            out.append((whole * scale + least).flatten(1)[:, :dim])
        return memory_of(tensors, *out)
