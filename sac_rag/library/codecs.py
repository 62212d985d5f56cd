"""How an AnchorKV becomes bytes: named tensors by a codec, then one contiguous run of bytes with its layout.

A codec knows nothing of files. The layout is a JSON-able list of (name, dtype, shape) in byte order; it is checked
against an allow-list of dtypes and against the byte count before any tensor is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch

from sac_rag.compress.anchor_kv import AnchorKV, Slots
from sac_rag.errors import ConfigError, LibraryCorrupt, MemoryInvalid
from sac_rag.foreign import parse_json
from sac_rag.library.dtypes import DTYPES, nbytes
from sac_rag.registry import Registry

CODECS = Registry(
    "codec",
    {
        "bf16": "sac_rag.library.codecs:Bf16",
        "int8": "sac_rag.library.codecs:Int8",
        "int4": "sac_rag.library.int4:Int4",
        "transform": "sac_rag.library.transform:Transform",
    },
)

_TORCH: dict[str, torch.dtype] = {name: getattr(torch, attribute) for name, (attribute, _) in DTYPES.items()}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}
_WHOLE = (torch.int16, torch.int32)
"""Dtypes of positions and counts."""

Layout = list[tuple[str, str, list[int]]]
"""(tensor name, safetensors dtype, shape), in the order of the bytes."""


class Codec(Protocol):
    """Stores an AnchorKV as flat named tensors, and back.

    What it was fitted to, if it is `fitted`, is its state: bytes that are stored in each library, so that a library is
    read without its adapter. Of bf16 and int8, `keys` and `values` are (slots, head_dim), of all but the fitted ones
    `positions` is (slots,) and `counts` (layers, kv_heads), both int16 where the passage is short enough and int32
    elsewhere, `source_len` (1,) int32. Of all codecs `bias` is (slots,) float16, and there for memories with biases
    alone. Both directions raise MemoryInvalid on NaN, Inf, or wrong shapes and dtypes. Several threads may decode at
    once; a codec whose memories share work in decoding gives `StoredKV`, with the same bits for one and for many.
    """

    name: str
    fitted: ClassVar[bool]
    """Whether it is made of a state."""

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]: ...

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV: ...


def is_fitted(name: str) -> bool:
    """Whether the codec of that name needs a state; ConfigError with a suggestion for an unknown one."""
    fitted: bool = CODECS.load(name).fitted
    return fitted


def get_codec(name: str, state: bytes | None = None) -> Codec:
    """The codec of that name, of its state if it needs one.

    Raises ConfigError with a suggestion for an unknown name, and without a state; LibraryCorrupt for one that is none.
    """
    if not is_fitted(name):
        plain: Codec = CODECS.load(name)()
        return plain
    if state is None:
        raise ConfigError(f"codec {name!r} has to be fitted to an adapter first: run `sac codec FILES --write`")
    fitted: Codec = CODECS.load(name).from_state(state)
    return fitted


class Bf16:
    """Two bytes a number. Decodes to bfloat16: relative error at most 2^-9, none for bfloat16 input."""

    name = "bf16"
    fitted = False

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        tensors = places_of(memory.validate())
        for name, t in (("keys", memory.keys), ("values", memory.values)):
            tensors[name] = t.detach().to("cpu", torch.bfloat16)
            if not bool(torch.isfinite(tensors[name]).all()):
                raise MemoryInvalid(f"{name} are too large for bfloat16 (largest magnitude {t.abs().max().item():.3g})")
        return tensors

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        return memory_of(tensors, need(tensors, "keys"), need(tensors, "values"))


class Int8:
    """One byte a number, symmetric, with one scale for each (run, channel); runs without slots have none.

    Decodes to float32; |error| <= scale / 2, where scale is the stored one, at least max|x| / 127 over the run.
    Scales are float16 rounded up (so nothing is clipped), float32 where float16 cannot hold one.
    """

    name = "int8"
    fitted = False

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        tensors = places_of(memory.validate())
        runs, filled = _filled(memory.counts)
        for name, t in (("key", memory.keys), ("value", memory.values)):
            x = t.detach().to("cpu", torch.float32)
            peak = x.new_zeros(filled, x.shape[1]).scatter_reduce(0, runs[:, None].expand_as(x), x.abs(), "amax")
            scale = _scales(peak)
            if not bool(torch.isfinite(scale.float() * 127).all()):
                raise MemoryInvalid(f"{name}s are too large for int8 (largest magnitude {peak.max().item():.3g})")
            divisor = scale.float()
            divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)[runs]
            tensors[f"{name}s"] = (x / divisor).round().clamp(-127, 127).to(torch.int8)
            tensors[f"{name}_scales"] = scale
        return tensors

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        slots, _ = slots_of(tensors)
        runs, filled = _filled(slots.counts)
        out = []
        for name in ("key", "value"):
            q, scale = need(tensors, f"{name}s"), need(tensors, f"{name}_scales")
            if q.ndim != 2 or len(q) != len(runs) or q.dtype != torch.int8:
                raise MemoryInvalid(f"int8 {name}s {tuple(q.shape)} {q.dtype} do not fit {len(runs)} slots")
            if scale.shape != (filled, q.shape[1]) or not scale.dtype.is_floating_point:
                found = f"{name} scales {tuple(scale.shape)} {scale.dtype}"
                raise MemoryInvalid(f"{found} do not fit {filled} runs of {q.shape[1]} channels")
            out.append(q.float() * scale.float()[runs])
        return memory_of(tensors, *out)


def _filled(counts: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(each slot's run, (slots,), numbered among those that are not empty; how many these are)."""
    filled = counts[counts > 0]
    return torch.repeat_interleave(filled), filled.numel()


def _scales(peak: torch.Tensor) -> torch.Tensor:
    """max|x| (runs, head_dim) float32 to scales of the same shape, float16 if it can hold them all."""
    half = (peak / 127).to(torch.float16)
    low = half.float() * 127 < peak
    # The next float16 above a finite non-negative one is the next integer of its bits.
    half = torch.where(low, (half.view(torch.int16) + 1).view(torch.float16), half)
    return half if bool(torch.isfinite(half).all()) else peak / 127


def places_of(memory: AnchorKV) -> dict[str, torch.Tensor]:
    if memory.source_len > torch.iinfo(torch.int32).max:
        raise MemoryInvalid(f"source_len {memory.source_len} does not fit 32 bits")
    # No run is longer than its passage, as its positions ascend.
    dtype = torch.int16 if memory.source_len <= torch.iinfo(torch.int16).max else torch.int32
    return {
        "positions": memory.positions.detach().to("cpu", dtype),
        "counts": memory.counts.to(dtype),
        "source_len": torch.tensor([memory.source_len], dtype=torch.int32),
        **biases_of(memory),
    }


def biases_of(memory: AnchorKV) -> dict[str, torch.Tensor]:
    """What a memory with biases has beside the rest; nothing for others, as in libraries from before there were any."""
    return {} if memory.bias is None else {"bias": memory.bias.detach().to("cpu", torch.float16)}


def bias_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The way back; its shape is judged with the memory."""
    bias = tensors.get("bias")
    if bias is not None and bias.dtype != torch.float16:
        raise MemoryInvalid(f"biases {tuple(bias.shape)} {bias.dtype} are malformed")
    return None if bias is None else bias.float()


def need(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise MemoryInvalid(f"stored memory lacks {name!r}; it has {', '.join(sorted(tensors))}")
    return tensors[name]


def slots_of(tensors: dict[str, torch.Tensor]) -> tuple[Slots, int]:
    """(slots, source_len). The counts are judged here: a sum that is too large would be a huge allocation."""
    positions, counts, length = (need(tensors, name) for name in ("positions", "counts", "source_len"))
    if length.shape != (1,) or length.dtype != torch.int32:
        raise MemoryInvalid(f"source_len {tuple(length.shape)} {length.dtype} is malformed")
    if positions.ndim != 1 or positions.dtype not in _WHOLE:
        raise MemoryInvalid(f"positions {tuple(positions.shape)} {positions.dtype} are malformed")
    if counts.ndim != 2 or counts.dtype not in _WHOLE or not counts.numel():
        raise MemoryInvalid(f"counts {tuple(counts.shape)} {counts.dtype} are not those of (layers, kv_heads)")
    positions, counts = positions.to(torch.int64), counts.to(torch.int64)
    if int(counts.min()) < 0 or int(counts.sum()) != positions.numel():
        raise MemoryInvalid(
            f"counts (least {int(counts.min())}, sum {int(counts.sum())}) are not those of {positions.numel()} slots"
        )
    return Slots(positions, counts), int(length[0])


def memory_of(tensors: dict[str, torch.Tensor], keys: torch.Tensor, values: torch.Tensor) -> AnchorKV:
    slots, length = slots_of(tensors)
    return AnchorKV(keys, values, slots.positions, slots.counts, length, bias_of(tensors)).validate()


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
        end = at + nbytes(dtype, shape)
        if end > len(buffer):
            raise LibraryCorrupt(f"layout needs at least {end} bytes, {len(buffer)} are stored")
        tensors[name] = torch.frombuffer(buffer, dtype=_TORCH[dtype], count=math.prod(shape), offset=at).reshape(shape)
        at = end
    if at != len(buffer):
        raise LibraryCorrupt(f"layout covers {at} bytes, {len(buffer)} are stored")
    return tensors


def layout_of(buffer: bytearray, text: str) -> Layout:
    """A stored layout, read from its JSON; LibraryCorrupt where it is none, or not that of these bytes."""
    try:
        layout = parse_json(text)
    except ValueError as e:
        raise LibraryCorrupt(f"unreadable layout of a stored memory ({e})") from e
    unpack(buffer, layout)
    return [(name, dtype, shape) for name, dtype, shape in layout]


def _checked(layout: Any) -> Sequence[tuple[str, str, list[int]]]:
    ok = isinstance(layout, list) and all(
        isinstance(entry, list | tuple)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and isinstance(entry[1], str)
        and entry[1] in DTYPES
        and isinstance(entry[2], list)
        and 1 <= len(entry[2]) <= 4
        and all(type(n) is int and 0 < n < 1 << 31 for n in entry[2])
        for entry in layout
    )
    if not ok:
        raise LibraryCorrupt(f"unreadable layout of a stored memory: {str(layout)[:120]}")
    return layout  # type: ignore[no-any-return]
