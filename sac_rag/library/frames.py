"""Integers as zstd frames, and back: small ones several to a byte, those that do not fit in a list beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import zstandard

from sac_rag.errors import MemoryInvalid

GROUP = 8
"""Integers of a slot that are packed together."""
MOST_GROWTH = 256
"""Bytes that one of a list of exceptions becomes: places ascend, and do not repeat themselves for zstd."""
PER_BYTE = {0: 0, 1: 4, 2: 2, 3: 2, 7: 2, 127: 1}
"""Largest magnitude of a group -> integers a byte, in base 2 * magnitude + 1; none where all are 0."""
# What is packed has no repeats worth finding: short matches cost bytes, and time in decoding.
_PARAMETERS = zstandard.ZstdCompressionParameters(
    compression_level=1, strategy=zstandard.STRATEGY_FAST, min_match=7, write_content_size=0
)


def compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_PARAMETERS).compress(data) if data else b""


class Expander:
    """Decompresses frames. For one thread at a time."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def __call__(self, frame: bytes, most: int) -> bytes:
        """A frame's content, of at most so many bytes; nothing larger is made."""
        if not frame:
            return b""
        try:
            if zstandard.frame_content_size(frame) > most:
                raise MemoryInvalid(f"a frame of a transformed memory holds more than its {most} bytes")
            found: bytes = self._zstd.decompress(frame, max_output_size=max(most, 1), allow_extra_data=False)
        except zstandard.ZstdError as error:
            # Where a frame does not say its size, one that is too long fails like one that is broken.
            why = f"does not parse, or holds more than its {most} bytes"
            raise MemoryInvalid(f"a frame of a transformed memory {why}: {error}") from error
        if len(found) > most:
            raise MemoryInvalid(f"a frame of a transformed memory holds more than its {most} bytes")
        return found

    def whole(self, frame: bytes, count: int) -> np.ndarray:
        """What `whole_bytes` wrote: (count,) int64."""
        data = self(frame, 4 * count)
        if len(data) not in (2 * count, 4 * count):
            raise MemoryInvalid(f"a transformed memory has {len(data)} bytes for {count} whole numbers")
        planes = np.frombuffer(data, np.uint8).reshape(-1, count)
        return np.ascontiguousarray(planes.T).view(f"<i{len(planes)}").ravel().astype(np.int64)

    def small(self, frames: Sequence[bytes], limit: int, out: np.ndarray) -> None:
        """What `packed` wrote, of groups of one limit that follow one another: out (slots, groups, 8) int8."""
        slots, per = len(out), PER_BYTE[limit]
        size = GROUP * slots // per if per else 0
        data = [self(frame, size) for frame in frames]
        if any(len(d) != size for d in data):
            raise MemoryInvalid(f"a group of a transformed memory has other than its {size} bytes")
        if not per:
            out[:] = 0
            return
        # Integers of a slot that stand at one place of their bytes are neighbours: moved as one number.
        together = np.dtype(f"u{GROUP // per}")
        target = out.view(together)
        rest, base = np.frombuffer(b"".join(data), np.uint8), np.uint8(2 * limit + 1)
        for place in range(per - 1, -1, -1):
            upper = rest // base
            # A byte too large for its digits comes from no encoder; it is read as one that is not.
            digits = (rest - upper * base).view(np.int8)
            digits -= np.int8(limit)
            target[:, :, place] = digits.view(together).reshape(-1, slots).T
            rest = upper

    def exceptions(self, frame: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in a flat array of `size`, and what stands there."""
        data = self(frame, min(8 * size, MOST_GROWTH * len(frame)))
        if len(data) % 8:
            raise MemoryInvalid("the exceptions of a transformed memory are cut short")
        places, values = np.frombuffer(data, "<i4").reshape(2, -1)
        if len(places) and not (places[0] >= 0 and places[-1] < size and bool((np.diff(places) > 0).all())):
            raise MemoryInvalid("the exceptions of a transformed memory lie outside it, or do not ascend")
        return places, values


def whole_bytes(numbers: np.ndarray) -> bytes:
    """Whole numbers, byte plane by byte plane, in two bytes each where these do, else in four."""
    width = 2 if not len(numbers) or -(1 << 15) <= numbers.min() <= numbers.max() < 1 << 15 else 4
    return numbers.astype(f"<i{width}").view(np.uint8).reshape(-1, width).T.tobytes()


def packed(part: np.ndarray, limit: int) -> bytes:
    """Integers (slots, 8) of magnitudes up to `limit`, several a byte: a slot's first in the highest digits of its
    bytes, and so on."""
    per, base = PER_BYTE[limit], 2 * limit + 1
    if not per:
        return b""
    digits = (part + limit).reshape(len(part), per, GROUP // per)
    return (base ** np.arange(per)[::-1, None] * digits).sum(1).astype(np.uint8).tobytes()


class FirstVersion:
    """Groups as they were packed before: axis by axis, neighbouring slots in one byte."""

    per_byte: ClassVar = {0: 0, 1: 5, 2: 3, 3: 2, 7: 2, 127: 1}

    def __init__(self, expand: Expander) -> None:
        self._expand = expand

    def small(self, frames: Sequence[bytes], limit: int, out: np.ndarray) -> None:
        """As `Expander.small`."""
        slots, per = len(out), self.per_byte[limit]
        size = -(-GROUP * slots // per) if per else 0
        powers = (2 * limit + 1) ** np.arange(per)[::-1]
        for group, frame in enumerate(frames):
            data = self._expand(frame, size)
            if len(data) != size:
                raise MemoryInvalid(f"a group of a transformed memory has other than its {size} bytes")
            digits = np.frombuffer(data, np.uint8)[:, None] // powers % (2 * limit + 1) - limit
            out[:, group] = digits.ravel()[: GROUP * slots].reshape(GROUP, slots).T if per else 0
