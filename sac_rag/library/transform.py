"""Transform coding of memories: each head's keys and values in axes of their own, quantised, entropy-coded.

Keys before RoPE and values of one head vary along few axes, which depend on model and adapter and hardly on the passage
(KVTC, arXiv 2511.01815). A `Basis` holds them for each head, fitted once, and one step for all keys and one for all
values: what varies less than a step along an axis becomes zeros by itself (reverse water filling; Cover and Thomas,
section 10.3.3). The integers are stored without loss: axes by rank in groups of eight, several small integers to a
byte, a zstd frame for each group; integers that do not fit their byte stand in a list beside it.

Axes are integers too, so that decoding is a product of integers: exact, hence the same bits on any machine, and
whatever is decoded at the same time.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sac_rag.compress.anchor_kv import AnchorKV, Slots, StoredKV, Take, check_bias, run_by_run
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import MemoryInvalid
from sac_rag.library.basis import UNIT, Basis, Product
from sac_rag.library.codecs import bias_of, biases_of
from sac_rag.library.frames import GROUP, PER_BYTE, Expander, FirstVersion, compress, packed, whole_bytes

RARE = 0.003
"""Share of a group's integers that may be larger."""
DEAD = 0.6
"""Numbers below this many steps become 0, and all are rounded with that shift: fewer bits at low rates."""
BLOCK = 2048
"""Slots, at the least, that are decoded in one go."""
MOST_TOKENS = 2 * MAX_PASSAGE_TOKENS
"""Tokens of a stored memory. Few bytes can stand for many slots, so that slots are bounded by the longest passage."""
VERSION = 2
FIRST = 1
"""The version before, which is read, too."""
_HEAD = struct.Struct("<BBHII")
"""Version, groups of axes, 0, source tokens, slots. Then a magnitude a group, and the lengths of the frames."""


class Steps(NamedTuple):
    """A memory as integers along the axes of its heads.

    integers: (2, slots, axes) int8, of keys and of values, axes in whole groups. beyond: for either, what is to be
    added to them where 8 bits are too few: slots, axes and numbers, each (n,).
    """

    integers: np.ndarray
    beyond: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]


class Transform:
    """AnchorKV to bytes in a `Basis`, and back to float32.

    Along each axis a number is off by at most DEAD steps: a slot's key, and its value, by DEAD * step * sqrt(head_dim)
    in all, up to the rounding of the axes.
    """

    name = "transform"
    fitted = True

    @classmethod
    def from_state(cls, state: bytes) -> Transform:
        """Raises LibraryCorrupt for bytes that are no `Basis`."""
        return cls(Basis.from_bytes(state))

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        self._means = basis.means.float().flatten(1, 2)
        self._groups = -(-basis.shape[2] // GROUP)
        # A row for each axis. Those of the last group that are no axes stand for nothing.
        rows = basis.axes.flatten(1, 2).transpose(-1, -2)
        self._rows = torch.nn.functional.pad(rows, (0, 0, 0, self._groups * GROUP - basis.shape[2])).contiguous()
        self._inverse: torch.Tensor | None = None

    def encode(self, memory: AnchorKV) -> dict[str, torch.Tensor]:
        """Raises MemoryInvalid for a memory of another shape, and for numbers beyond 2^31 steps."""
        if memory.source_len > MOST_TOKENS:
            raise MemoryInvalid(f"a memory of {memory.source_len} tokens is of no passage; at most {MOST_TOKENS} are")
        shape = (*memory.validate().counts.shape, memory.keys.shape[1])
        if shape != self.basis.shape:
            raise MemoryInvalid(f"a memory of {shape} (layers, kv_heads, head_dim) does not fit {self.basis.shape}")
        counts = memory.counts.flatten()
        frames = [whole_bytes(counts.numpy()), whole_bytes(np.diff(memory.positions.cpu().numpy(), prepend=0))]
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
                frames.append(packed(np.where(magnitudes > limit, 0, part).T, limit))
            frames.append(np.stack([outside.ravel().nonzero()[0], integers[outside]]).astype("<i4").tobytes())
        coded = [compress(frame) for frame in frames]
        head = _HEAD.pack(VERSION, self._groups, 0, memory.source_len, memory.positions.numel())
        lengths = np.array([len(c) for c in coded], "<u4").tobytes()
        data = bytearray(b"".join((head, bytes(limits), lengths, *coded)))
        return {"coded": torch.frombuffer(data, dtype=torch.uint8), **biases_of(memory)}

    def decode(self, tensors: dict[str, torch.Tensor]) -> StoredKV:
        """Raises MemoryInvalid for bytes that are no memory in this basis; nothing is made larger than they say."""
        coded = tensors.get("coded")
        if coded is None or set(tensors) - {"coded", "bias"} or coded.ndim != 1 or coded.dtype != torch.uint8:
            raise MemoryInvalid(f"stored memory has {', '.join(sorted(tensors))}; a transformed one has bytes, `coded`")
        layers, heads, _ = self.basis.shape
        version, source_len, slots, limits, frames = self._opened(coded.numpy().tobytes())
        expand = Expander()
        counts = expand.whole(next(frames), layers * heads)
        positions = expand.whole(next(frames), slots).cumsum()
        if int(counts.sum()) != slots or int(counts.min()) < 0:
            raise MemoryInvalid(f"a transformed memory has counts of {int(counts.sum())} slots in place of {slots}")
        kept = Slots(torch.from_numpy(positions), torch.from_numpy(counts).view(layers, heads)).validate(source_len)
        packing = FirstVersion(expand) if version == FIRST else expand
        integers = np.empty((2, slots, self._groups, GROUP), np.int8)
        beyond = []
        for which, own in enumerate(integers):
            at = 0
            for limit, those in itertools.groupby(limits[which * self._groups : (which + 1) * self._groups]):
                count = len(list(those))
                packing.small(list(itertools.islice(frames, count)), limit, own[:, at : at + count])
                at += count
            places, values = expand.exceptions(next(frames), own.size)
            axes, places = np.divmod(places, slots)
            small = values.clip(-UNIT, UNIT)
            own.reshape(slots, -1)[places, axes] = small
            more = (values != small).nonzero()[0]
            beyond.append((places[more], axes[more], values[more].astype(np.int64) - small[more]))
        bias = bias_of(tensors)
        if bias is not None:
            check_bias(bias, slots)
        steps = Steps(integers.reshape(2, slots, -1), tuple(beyond))
        return StoredKV.of(self, steps, kept, self.basis.shape[2], source_len, bias)

    def decode_runs(self, memories: Sequence[StoredKV], take: Take) -> None:
        """As of `Decoder`: the runs of one head are multiplied together, a block of runs at a time."""
        order = run_by_run([m.counts for m in memories]) if len(memories) > 1 else None
        totals = torch.stack([m.counts.flatten() for m in memories]).sum(0).tolist()
        blocks = list(_blocks(totals))
        room = torch.empty(max(end - start for start, end, _, _ in blocks), self.basis.shape[2], dtype=torch.float32)
        multiply = Product()
        for which in (0, 1):
            parts = [m.stored.integers[which] for m in memories]
            joined, scale = torch.from_numpy(np.concatenate(parts)), float(self.basis.scales[which])
            beyond = self._beyond(which, memories, order)
            for start, end, runs, sizes in blocks:
                out = room[: end - start]
                rows = joined[start:end] if order is None else joined.index_select(0, order[start:end])
                multiply(rows.split(sizes), self._rows[which, runs], scale, out)
                # One after the other: fused they round otherwise, where the machine fuses.
                means = self._means[which, runs].repeat_interleave(torch.tensor(sizes), dim=0, output_size=len(out))
                out.add_(means)
                for places, more in beyond:
                    here = (places >= start) & (places < end)
                    out[places[here] - start] += more[here]
                take(which, slice(start, end), out)

    def _integers(self, which: int, numbers: torch.Tensor, counts: list[int]) -> np.ndarray:
        """Numbers (slots, head_dim) as steps along the axes of their heads, (whole groups of axes, slots)."""
        if self._inverse is None:
            # Columns are orthonormal up to rounding only: what decoding multiplies by is inverted for coding.
            scaled = self.basis.axes.float().flatten(1, 2) * self.basis.scales[:, None, None, None]
            self._inverse = torch.linalg.inv(scaled).transpose(-1, -2).contiguous()
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

    def _beyond(
        self, which: int, memories: Sequence[StoredKV], order: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What 8 bits did not hold, axis by axis: rows in which runs hold those of all memories, each once, and what is
        to be added to them, (n, head_dim)."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        starts = itertools.accumulate((len(m.positions) for m in memories), initial=0)
        if not any(len(m.stored.beyond[which][0]) for m in memories):
            return found
        rows = self._rows[which].float() * self.basis.scales[which]
        stands = None if order is None else torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        for memory, start in zip(memories, starts, strict=False):
            slots, axes, more = map(torch.from_numpy, memory.stored.beyond[which])
            runs, places = memory.slots.runs(), slots + start
            places = places if stands is None else stands[places]
            for axis in axes.unique().tolist():
                at = axes == axis
                found.append((places[at], more[at].float()[:, None] * rows[runs[slots[at]], axis]))
        return found

    def _opened(self, data: bytes) -> tuple[int, int, int, list[int], Iterator[bytes]]:
        """(version, source tokens, slots, magnitude of each group, frames)."""
        layers, heads, _ = self.basis.shape
        frames, groups = 2 + 2 * (self._groups + 1), 2 * self._groups
        start = _HEAD.size + groups + 4 * frames
        if len(data) < start:
            raise MemoryInvalid(f"a transformed memory of {len(data)} bytes is cut short")
        version, given, zero, source_len, slots = _HEAD.unpack_from(data)
        limits = list(data[_HEAD.size : _HEAD.size + groups])
        lengths = np.frombuffer(data, "<u4", frames, _HEAD.size + groups).astype(np.int64).tolist()
        if version not in (FIRST, VERSION) or (given, zero) != (self._groups, 0) or not set(limits) <= set(PER_BYTE):
            raise MemoryInvalid(f"a transformed memory has version {version} and {given} groups of magnitudes {limits}")
        whole = source_len <= MOST_TOKENS and 0 < slots <= layers * heads * source_len
        if not whole or start + sum(lengths) != len(data):
            raise MemoryInvalid(f"a transformed memory of {slots} slots, {source_len} tokens does not fill its bytes")
        ends = list(itertools.accumulate(lengths, initial=start))
        return version, source_len, slots, limits, (data[a:b] for a, b in itertools.pairwise(ends))


def _blocks(totals: Sequence[int]) -> Iterator[tuple[int, int, list[int], list[int]]]:
    """Runs in blocks that fit a core's cache: (first row, end, the runs that have rows, how many each)."""
    start, end, runs, sizes = 0, 0, list[int](), list[int]()
    for run, size in enumerate(totals):
        if size:
            runs.append(run)
            sizes.append(size)
            end += size
        if runs and (end - start >= BLOCK or run == len(totals) - 1):
            yield start, end, runs, sizes
            start, runs, sizes = end, [], []
