"""Segment files: KV bytes of many passages in one immutable safetensors file.

Readers go by the catalog's offsets and checksums alone; the safetensors header is there for other tools and is
never trusted. Knows nothing of tensors: a passage is a run of bytes with a layout.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import xxhash

from sac_rag.errors import LibraryCorrupt
from sac_rag.library import folder as files
from sac_rag.library.dtypes import nbytes

SEGMENT_BYTES = 256 << 20
"""Where a segment ends: no passage is added that would make its data longer, unless it is the first."""
_IN_MEMORY = 16 << 20
_COPY = 1 << 20


@dataclass(frozen=True)
class Slot:
    """Where the bytes of one passage lie in a segment, and their XXH3-128 digest."""

    segment: int
    offset: int
    length: int
    xxh3: bytes


@dataclass(frozen=True)
class SegmentInfo:
    """A finished segment file: `size` bytes in all, data from `start` on, digest of what lies before it."""

    number: int
    size: int
    start: int
    header: bytes

    @property
    def payload(self) -> int:
        return self.size - self.start


class Segment:
    """A mapped segment. It stays readable after the file is unlinked."""

    def __init__(self, folder: Path, info: SegmentInfo) -> None:
        """Raises LibraryCorrupt when the file is missing or has another size than the catalog says."""
        self.info = info
        self._path = folder / files.segment_name(info.number)
        fd, size = files.open_read(folder, self._path.name)
        try:
            if size != info.size:
                raise LibraryCorrupt(f"{self._path} has {size} bytes instead of {info.size}: restore it or index again")
            self._map = files.with_room(folder, lambda: mmap.mmap(fd, size, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)
        self._advise("MADV_RANDOM", 0, size)

    def prefetch(self, slot: Slot) -> None:
        """Tell the kernel that these bytes come next; it reads them in one go."""
        start = slot.offset - slot.offset % mmap.PAGESIZE
        if 0 <= start < self.info.size:
            self._advise("MADV_WILLNEED", start, min(slot.offset + slot.length, self.info.size) - start)

    def read(self, slot: Slot) -> bytearray:
        """A private copy of the bytes, verified; LibraryCorrupt if they are not those that were stored."""
        end = slot.offset + slot.length
        # A map of a file that was cut short since would kill the process on access.
        if not (self.info.start <= slot.offset <= end <= self.info.size and self._map.size() == self.info.size):
            raise LibraryCorrupt(f"{self._path}: bytes {slot.offset}..{end} lie outside the file")
        with memoryview(self._map) as whole, whole[slot.offset : end] as part:
            data = bytearray(part)
        if xxhash.xxh3_128_digest(data) != slot.xxh3:
            raise LibraryCorrupt(f"{self._path}: bytes {slot.offset}..{end} fail their checksum")
        return data

    def header_is_intact(self) -> bool:
        with memoryview(self._map) as whole, whole[: self.info.start] as part:
            return xxhash.xxh3_128_digest(part) == self.info.header

    def _advise(self, option: str, start: int, length: int) -> None:
        if hasattr(mmap, option):
            self._map.madvise(getattr(mmap, option), start, length)


class SegmentWriter:
    """Collects passages in an unnamed spool file, then writes the segment whole: the header must come first."""

    def __init__(self, folder: Path, number: int, cap: int = SEGMENT_BYTES, *, name: str | None = None) -> None:
        """name: of the file, in place of that of a library's segment `number`."""
        self.number, self.name = number, name or files.segment_name(number)
        self._folder, self._cap = folder, cap
        prefix = files.MADE_SPOOL_PREFIX if name else files.SPOOL_PREFIX
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (closed by finish or abort)
            max_size=_IN_MEMORY, dir=str(folder), prefix=prefix
        )
        self._payload = 0
        self._entries: dict[str, dict[str, object]] = {}
        self._slots: list[Slot] = []

    def has_room(self, length: int) -> bool:
        return not self._payload or self._payload + length <= self._cap

    def add(self, name: str, layout: Sequence[tuple[str, str, list[int]]], chunks: Sequence[bytes | bytearray]) -> None:
        """Append one passage: `chunks` hold, together, the bytes that `layout` describes."""
        digest, begin = xxhash.xxh3_128(), self._payload
        for chunk in chunks:
            self._spool.write(chunk)
            digest.update(chunk)
            self._payload += len(chunk)
        at = begin
        for tensor, dtype, shape in layout:
            end = at + nbytes(dtype, shape)
            self._entries[f"{name}.{tensor}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            at = end
        if at != self._payload:
            raise ValueError(f"layout of {name} covers {at - begin} bytes, {self._payload - begin} were given")
        self._slots.append(Slot(self.number, begin, self._payload - begin, digest.digest()))

    def finish(self) -> tuple[SegmentInfo, list[Slot]]:
        """Write, fsync and rename the file; its info, and the slots in the order of `add`."""
        text = json.dumps(self._entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        try:
            size = files.write_durable(self._folder, self.name, self._chunks(header))
        finally:
            self._spool.close()
        info = SegmentInfo(self.number, size, len(header), xxhash.xxh3_128_digest(header))
        return info, [Slot(s.segment, s.offset + info.start, s.length, s.xxh3) for s in self._slots]

    def abort(self) -> None:
        self._spool.close()

    def _chunks(self, header: bytes) -> Iterator[bytes]:
        yield header
        self._spool.seek(0)
        while chunk := self._spool.read(_COPY):
            yield chunk
