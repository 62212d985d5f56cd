"""How an AnchorKV becomes bytes: named tensors by a codec, then one contiguous run of bytes with its layout.

A codec knows nothing of files. The layout is a JSON-able list of (name, dtype, shape) in byte order; it is checked
against an allow-list of dtypes and against the byte count before any tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import LibraryCorrupt, MemoryInvalid
from sac_rag.registry import Registry

CODECS = Registry("codec", {"bf16": "sac_rag.library.codecs:Bf16", "int8": "sac_rag.library.codecs:Int8"})

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I8": torch.int8,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Layout = list[tuple[str, str, list[int]]]
"""(tensor name, safetensors dtype, shape), in the order of the bytes."""


class Codec(Protocol):
    """Stores keys and values of shape (layers, kv_heads, anchors, head_dim) as flat named tensors, and back.

    Both directions raise MemoryInvalid on NaN, Inf, or wrong shapes and dtypes.
    """

    name: str

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]: ...

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV: ...


def get_codec(name: str) -> Codec:
    """The codec of that name; ConfigError with a suggestion otherwise."""
    codec: Codec = CODECS.load(name)()
    return codec


class Bf16:
    """Two bytes a number. Decodes to bfloat16: relative error at most 2^-9, none for bfloat16 input."""

    name = "bf16"

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        tensors = _places(memory.validate())
        for name, t in (("keys", memory.keys), ("values", memory.values)):
            tensors[name] = t.detach().to("cpu", torch.bfloat16)
            if not bool(torch.isfinite(tensors[name]).all()):
                raise MemoryInvalid(f"{name} are too large for bfloat16 (largest magnitude {t.abs().max().item():.3g})")
        return tensors

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        return _memory(tensors, _need(tensors, "keys"), _need(tensors, "values"))


class Int8:
    """One byte a number, symmetric, with one scale for each (layer, head, channel) over the anchors.

    Decodes to float32; |error| <= scale / 2, where scale is the stored one, at least max|x| / 127 over the anchors.
    Scales are float16 rounded up (so nothing is clipped), float32 where float16 cannot hold one.
    """

    name = "int8"

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        tensors = _places(memory.validate())
        for name, t in (("key", memory.keys), ("value", memory.values)):
            x = t.detach().to("cpu", torch.float32)
            peak = x.abs().amax(dim=2)
            scale = _scales(peak)
            if not bool(torch.isfinite(scale.float() * 127).all()):
                raise MemoryInvalid(f"{name}s are too large for int8 (largest magnitude {peak.max().item():.3g})")
            divisor = scale.float().unsqueeze(2)
            divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
            tensors[f"{name}s"] = (x / divisor).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scales"] = scale
        return tensors

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        out = []
        for name in ("key", "value"):
            q, scale = _need(tensors, f"{name}s"), _need(tensors, f"{name}_scales")
            if q.ndim != 4 or q.dtype != torch.int8 or scale.shape != (*q.shape[:2], q.shape[3]):
                raise MemoryInvalid(f"int8 {name}s {tuple(q.shape)} {q.dtype} do not fit scales {tuple(scale.shape)}")
            out.append(q.float() * scale.float().unsqueeze(2))
        return _memory(tensors, *out)


def _scales(peak: torch.Tensor) -> torch.Tensor:
    """max|x| (layers, kv_heads, head_dim) float32 to scales of the same shape, float16 if it can hold them all."""
    half = (peak / 127).to(torch.float16)
    low = half.float() * 127 < peak
    # The next float16 above a finite non-negative one is the next integer of its bits.
    half = torch.where(low, (half.view(torch.int16) + 1).view(torch.float16), half)
    return half if bool(torch.isfinite(half).all()) else peak / 127


def _places(memory: AnchorKV) -> dict[str, torch.Tensor]:
    if memory.source_len > torch.iinfo(torch.int32).max:
        raise MemoryInvalid(f"source_len {memory.source_len} does not fit 32 bits")
    positions = memory.positions.detach().to("cpu", torch.int32)
    return {"positions": positions, "source_len": torch.tensor([memory.source_len], dtype=torch.int32)}


def _need(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise MemoryInvalid(f"stored memory lacks {name!r}; it has {', '.join(sorted(tensors))}")
    return tensors[name]


def _memory(tensors: dict[str, torch.Tensor], keys: torch.Tensor, values: torch.Tensor) -> AnchorKV:
    positions, length = _need(tensors, "positions"), _need(tensors, "source_len")
    if length.shape != (1,) or length.dtype != torch.int32 or positions.ndim != 1:
        raise MemoryInvalid(f"positions {tuple(positions.shape)} or source_len {tuple(length.shape)} are malformed")
    return AnchorKV(keys, values, positions.to(torch.int64), int(length[0])).validate()


def pack(tensors: dict[str, torch.Tensor]) -> tuple[Layout, list[bytes]]:
    """Tensors as bytes, widest numbers first so that each lies aligned in a copy; (layout, one chunk a tensor)."""
    layout: Layout = []
    chunks: list[bytes] = []
    for name, t in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        layout.append((name, _NAMES[t.dtype], list(t.shape)))
        chunks.append(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return layout, chunks


def unpack(buffer: bytearray, layout: Any) -> dict[str, torch.Tensor]:
    """Tensors over `buffer` (shared, not copied); LibraryCorrupt when the layout and the bytes disagree."""
    tensors: dict[str, torch.Tensor] = {}
    at = 0
    for name, dtype, shape in _checked(layout):
        count = math.prod(shape)
        end = at + count * _DTYPES[dtype].itemsize
        if end > len(buffer):
            raise LibraryCorrupt(f"layout needs at least {end} bytes, {len(buffer)} are stored")
        tensors[name] = torch.frombuffer(buffer, dtype=_DTYPES[dtype], count=count, offset=at).reshape(shape)
        at = end
    if at != len(buffer):
        raise LibraryCorrupt(f"layout covers {at} bytes, {len(buffer)} are stored")
    return tensors


def _checked(layout: Any) -> Sequence[tuple[str, str, list[int]]]:
    ok = isinstance(layout, list) and all(
        isinstance(entry, list | tuple)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and isinstance(entry[1], str)
        and entry[1] in _DTYPES
        and isinstance(entry[2], list)
        and 1 <= len(entry[2]) <= 4
        and all(type(n) is int and 0 < n < 1 << 31 for n in entry[2])
        for entry in layout
    )
    if not ok:
        raise LibraryCorrupt(f"unreadable layout of a stored memory: {str(layout)[:120]}")
    return layout  # type: ignore[no-any-return]
