"""Transform coding of memories: each head's keys and values in axes of their own, quantised, entropy-coded.

Keys before RoPE and values of one head vary along few axes, which depend on model and adapter and hardly on the passage
(KVTC, arXiv 2511.01815). A `Basis` holds them for each head, fitted once, and one step for all keys and one for all
values: what varies less than a step along an axis becomes zeros by itself (reverse water filling; Cover and Thomas,
section 10.3.3). The integers are stored without loss: axes by rank in groups of eight, several small integers to a
byte, a zstd frame for each group; integers that do not fit their byte stand in a list beside it.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import zstandard

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import LibraryCorrupt, MemoryInvalid
from sac_rag.library.codecs import bias_of, biases_of

GROUP = 8
"""Axes that are coded together."""
PER_BYTE = {0: 0, 1: 5, 2: 3, 3: 2, 7: 2, 127: 1}
"""Largest magnitude of a group -> integers a byte, in base 2 * magnitude + 1; none where all are 0."""
RARE = 0.003
"""Share of a group's integers that may be larger."""
DEAD = 0.6
"""Numbers below this many steps become 0, and all are rounded with that shift: fewer bits at low rates."""
LEVEL = 3
VERSION = 1
_HEAD = struct.Struct("<BBHII")
"""Version, groups of axes, 0, source tokens, slots. Then a magnitude a group, and the lengths of the frames."""
_MOST = 256 << 20


@dataclass(frozen=True)
class Basis:
    """What the memories of one adapter are coded in.

    axes: (2, layers, kv_heads, head_dim, head_dim) float16, keys then values; its columns are orthonormal, the most
    varied first. means: (2, layers, kv_heads, head_dim) float16. steps: (2,) float32, of keys and of values.
    """

    axes: torch.Tensor
    means: torch.Tensor
    steps: torch.Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, kv_heads, head_dim)."""
        layers, heads, dim = self.means.shape[1:]
        return layers, heads, dim

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
        return cls(axes.half(), means.half(), (step * variance.clamp_min(1e-12).sqrt()).float())

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
        dtypes = (axes.dtype, means.dtype, steps.dtype) == (torch.float16, torch.float16, torch.float32)
        if not (shapes and dtypes and means.shape == axes.shape[:4] and steps.shape == (2,)):
            raise LibraryCorrupt("a codec's basis has axes, means or steps of other shapes or dtypes than a basis has")
        if not (all(bool(torch.isfinite(t).all()) for t in found.values()) and bool((steps > 0).all())):
            raise LibraryCorrupt("a codec's basis holds NaN, Inf or a step that is not above 0")
        return cls(axes, means, steps)


class Transform:
    """AnchorKV to bytes in a `Basis`, and back to float32.

    Along each axis a number is off by at most DEAD steps: a slot's key, and its value, by DEAD * step * sqrt(head_dim)
    in all, up to the float16 of the axes.
    """

    name = "transform"
    fitted = True

    @classmethod
    def from_state(cls, state: bytes) -> Transform:
        """Raises LibraryCorrupt for bytes that are no `Basis`."""
        return cls(Basis.from_bytes(state))

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        axes, self._means = basis.axes.float().flatten(1, 2), basis.means.float().flatten(1, 2)
        scaled = axes * basis.steps[:, None, None, None]
        # float16 columns are orthonormal to 1e-3 only: what decoding multiplies by is inverted for coding.
        self._inverse = torch.linalg.inv(scaled).transpose(-1, -2).contiguous()
        # A row for the mean below those of the axes: one product a run, and nothing is added behind it.
        self._rows = torch.cat((scaled.transpose(-1, -2), self._means[:, :, None]), dim=2)
        self._groups = -(-basis.shape[2] // GROUP)

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        """Raises MemoryInvalid for a memory of another shape, and for numbers beyond 2^31 steps."""
        shape = (*memory.validate().counts.shape, memory.keys.shape[1])
        if shape != self.basis.shape:
            raise MemoryInvalid(f"a memory of {shape} (layers, kv_heads, head_dim) does not fit {self.basis.shape}")
        counts = memory.counts.flatten()
        frames = [_whole_bytes(counts.numpy()), _whole_bytes(np.diff(memory.positions.cpu().numpy(), prepend=0))]
        limits: list[int] = []
        for which, tensor in enumerate((memory.keys, memory.values)):
            integers = self._integers(which, tensor.detach().to("cpu", torch.float32), counts.tolist())
            outside = np.zeros(integers.shape, bool)
            for at in range(0, len(integers), GROUP):
                part = integers[at : at + GROUP]
                magnitudes = np.abs(part)
                limit = next(n for n in PER_BYTE if n == max(PER_BYTE) or (magnitudes > n).mean() <= RARE)
                outside[at : at + GROUP] = magnitudes > limit
                limits.append(limit)
                frames.append(_packed(np.where(magnitudes > limit, 0, part), limit))
            frames.append(np.stack([outside.ravel().nonzero()[0], integers[outside]]).astype("<i4").tobytes())
        coded = [_compress(frame) for frame in frames]
        head = _HEAD.pack(VERSION, self._groups, 0, memory.source_len, memory.positions.numel())
        lengths = np.array([len(c) for c in coded], "<u4").tobytes()
        data = bytearray(b"".join((head, bytes(limits), lengths, *coded)))
        return {"coded": torch.frombuffer(data, dtype=torch.uint8), **biases_of(memory)}

    def decode(self, tensors: dict[str, torch.Tensor]) -> AnchorKV:
        """Raises MemoryInvalid for bytes that are no memory in this basis; nothing is made larger than they say."""
        coded = tensors.get("coded")
        if coded is None or set(tensors) - {"coded", "bias"} or coded.ndim != 1 or coded.dtype != torch.uint8:
            raise MemoryInvalid(f"stored memory has {', '.join(sorted(tensors))}; a transformed one has bytes, `coded`")
        layers, heads, dim = self.basis.shape
        source_len, slots, limits, parts = self._opened(coded.numpy().tobytes())
        counts = _whole(next(parts), layers * heads)
        positions = _whole(next(parts), slots).cumsum()
        if int(counts.sum()) != slots or int(counts.min()) < 0:
            raise MemoryInvalid(f"a transformed memory has counts of {int(counts.sum())} slots in place of {slots}")
        found = []
        size = GROUP * slots
        for which in (0, 1):
            integers, used = np.empty(self._groups * size, np.float32), 0
            for group in range(self._groups):
                limit = limits[which * self._groups + group]
                integers[group * size : (group + 1) * size] = _unpacked(next(parts), size, limit)
                used = (group + 1) * GROUP if limit else used
            places, exceptions = _exceptions(next(parts), len(integers))
            integers[places] = exceptions
            used = min(dim, max(used, int(places.max(initial=-1)) // slots + 1))
            found.append(self._numbers(which, torch.from_numpy(integers).view(-1, slots)[:used], counts))
        sizes = torch.from_numpy(counts).view(layers, heads)
        keys, values = found
        return AnchorKV(keys, values, torch.from_numpy(positions), sizes, source_len, bias_of(tensors)).validate()

    def _integers(self, which: int, numbers: torch.Tensor, counts: list[int]) -> np.ndarray:
        """Numbers (slots, head_dim) as steps along the axes of their heads, (whole groups of axes, slots)."""
        out = torch.zeros(self._groups * GROUP, len(numbers))
        steps = [
            (part - self._means[which, run]) @ self._inverse[which, run]
            for run, part in enumerate(numbers.split(counts))
            if len(part)
        ]
        out[: numbers.shape[1]] = torch.cat(steps).T
        if not bool(out.abs().max() < 2**31 - 1):
            raise MemoryInvalid(f"{('keys', 'values')[which]} are more than 2^31 steps from their mean")
        return (out.sign() * (out.abs() + (1 - DEAD)).floor()).numpy().astype(np.int32)

    def _numbers(self, which: int, steps: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
        """The way back: steps along the first axes, (axes, slots), to (slots, head_dim) float32."""
        used, slots = steps.shape
        along = torch.cat((steps, torch.ones(1, slots)))
        rows = torch.cat((self._rows[which, :, :used], self._rows[which, :, -1:]), dim=1)
        out = torch.empty(slots, self.basis.shape[2])
        end = 0
        for run in counts.nonzero()[0].tolist():
            start, end = end, end + int(counts[run])
            torch.mm(along[:, start:end].T, rows[run], out=out[start:end])
        return out

    def _opened(self, data: bytes) -> tuple[int, int, list[int], Iterator[bytes]]:
        """(source tokens, slots, magnitude of each group, frames)."""
        layers, heads, _ = self.basis.shape
        frames, groups = 2 + 2 * (self._groups + 1), 2 * self._groups
        start = _HEAD.size + groups + 4 * frames
        if len(data) < start:
            raise MemoryInvalid(f"a transformed memory of {len(data)} bytes is cut short")
        version, given, zero, source_len, slots = _HEAD.unpack_from(data)
        limits = list(data[_HEAD.size : _HEAD.size + groups])
        lengths = np.frombuffer(data, "<u4", frames, _HEAD.size + groups).astype(np.int64).tolist()
        if (version, given, zero) != (VERSION, self._groups, 0) or not set(limits) <= set(PER_BYTE):
            raise MemoryInvalid(f"a transformed memory has version {version} and {given} groups of magnitudes {limits}")
        if not 0 < slots <= layers * heads * source_len or start + sum(lengths) != len(data):
            raise MemoryInvalid(f"a transformed memory of {slots} slots, {source_len} tokens does not fill its bytes")
        ends = list(itertools.accumulate(lengths, initial=start))
        return source_len, slots, limits, (data[a:b] for a, b in itertools.pairwise(ends))


def _compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=False).compress(data) if data else b""


def _expand(frame: bytes, most: int) -> bytes:
    """A frame's content, of at most so many bytes."""
    if not frame:
        return b""
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(frame) as reader:
            found: bytes = reader.read(most + 1)
    except zstandard.ZstdError as error:
        raise MemoryInvalid(f"a frame of a transformed memory does not parse: {error}") from error
    if len(found) > most:
        raise MemoryInvalid(f"a frame of a transformed memory holds more than its {most} bytes")
    return found


def _whole_bytes(numbers: np.ndarray) -> bytes:
    """Whole numbers, byte plane by byte plane, in two bytes each where these do, else in four."""
    width = 2 if not len(numbers) or -(1 << 15) <= numbers.min() <= numbers.max() < 1 << 15 else 4
    return numbers.astype(f"<i{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def _whole(frame: bytes, count: int) -> np.ndarray:
    """The way back: (count,) int64."""
    data = _expand(frame, 4 * count)
    if len(data) not in (2 * count, 4 * count):
        raise MemoryInvalid(f"a transformed memory has {len(data)} bytes for {count} whole numbers")
    planes = np.frombuffer(data, np.uint8).reshape(-1, count)
    return np.ascontiguousarray(planes.T).view(f"<i{len(planes)}").ravel().astype(np.int64)


def _packed(part: np.ndarray, limit: int) -> bytes:
    """Integers of magnitudes up to `limit`, several a byte, the first the most significant."""
    per, base = PER_BYTE[limit], 2 * limit + 1
    if not per:
        return b""
    digits = np.pad((part + limit).ravel(), (0, -part.size % per)).reshape(-1, per)
    return (digits @ base ** np.arange(per)[::-1]).astype(np.uint8).tobytes()


def _unpacked(frame: bytes, count: int, limit: int) -> np.ndarray:
    """The way back: (count,) float32."""
    per = PER_BYTE[limit]
    size = -(-count // per) if per else 0
    data = _expand(frame, size)
    if len(data) != size:
        raise MemoryInvalid(f"a group of a transformed memory has {len(data)} bytes in place of {size}")
    if not per:
        return np.zeros(count, np.float32)
    return _DIGITS[limit][np.frombuffer(data, np.uint8)].ravel()[:count]


def _exceptions(frame: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in a flat array of `size`, and what stands there."""
    data = _expand(frame, 8 * size)
    if len(data) % 8:
        raise MemoryInvalid("the exceptions of a transformed memory are cut short")
    places, values = np.frombuffer(data, "<i4").reshape(2, -1)
    if len(places) and not 0 <= places.min() <= places.max() < size:
        raise MemoryInvalid("an exception of a transformed memory lies outside it")
    return places, values


def _digits(limit: int) -> np.ndarray:
    """Byte -> its integers, (256, per byte) float32; a byte too large for that is read as one that is not."""
    per, base = PER_BYTE[limit], 2 * limit + 1
    powers = base ** np.arange(per)[::-1]
    return (np.arange(256)[:, None] // powers % base - limit).astype(np.float32)


_DIGITS = {limit: _digits(limit) for limit, per in PER_BYTE.items() if per}
