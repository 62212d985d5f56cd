"""Segments that are finished before there is a transaction: what makes them needs no library and no lock.

`write` encodes memories into segment files under names of their own; `Transaction.adopt` takes them in. A file that
no commit adopts goes with the next writer that opens the library.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sac_rag.errors import LibraryError, MemoryInvalid
from sac_rag.library import folder as files
from sac_rag.library.segments import SEGMENT_BYTES, SegmentWriter

if TYPE_CHECKING:
    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.codecs import Codec

_numbers = itertools.count(1)


@dataclass(frozen=True)
class MadeMemory:
    """The memory of one passage within a made segment; the fields are those of the catalog."""

    passage: str
    offset: int
    length: int
    layout: str
    xxh3: str
    """Hex, as all of this is JSON on its way between processes."""
    anchors: int
    source_len: int


@dataclass(frozen=True)
class MadeSegment:
    """A finished segment file that waits for its commit."""

    name: str
    size: int
    start: int
    header: str
    """Hex digest of what lies before `start`."""
    memories: tuple[MadeMemory, ...]

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> MadeSegment:
        return cls(**{**values, "memories": tuple(MadeMemory(**m) for m in values["memories"])})


def write(
    folder: Path, codec: Codec, memories: Iterable[tuple[str, AnchorKV]], segment_bytes: int = SEGMENT_BYTES
) -> list[MadeSegment]:
    """Encode (passage id, memory) pairs, in order, into as few segments as `segment_bytes` allows; durable on return.

    folder: that of the library that is to adopt them. Raises MemoryInvalid naming the passage, LibraryFull; nothing is
    left behind then.
    """
    making = _Making(folder, segment_bytes)
    try:
        with files.writing(folder):
            for passage, memory in memories:
                making.add(passage, codec, memory)
            making.finish()
    except BaseException:
        making.abort()
        raise
    return making.done


def receive(folder: Path, segment: MadeSegment, data: bytes) -> MadeSegment:
    """A segment that was made on another machine, written under a name of this process; durable on return.

    Raises LibraryError for bytes of another number than it has, LibraryFull.
    """
    if len(data) != segment.size:
        raise LibraryError(f"a segment of {segment.size:,} bytes came as {len(data):,}: index again")
    name = files.made_name(os.getpid(), next(_numbers))
    with files.writing(folder):
        files.write_durable(folder, name, [data])
        files.sync(folder)
    return replace(segment, name=name)


def discard(folder: Path, made: Iterable[MadeSegment]) -> None:
    """Unlink segments that no commit will adopt."""
    for segment in made:
        with contextlib.suppress(OSError):
            os.unlink(folder / segment.name)


class _Making:
    """Segments that are done, and the one that is being written."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder, self._cap = folder, segment_bytes
        self.done: list[MadeSegment] = []
        self._writer: SegmentWriter | None = None
        self._held: list[tuple[str, str, int, int]] = []
        """(passage, layout, anchors, source_len) of what lies in the open one."""

    def add(self, passage: str, codec: Codec, memory: AnchorKV) -> None:
        from sac_rag.library.codecs import pack

        try:
            layout, data = pack(codec.encode(memory))
        except MemoryInvalid as e:
            raise MemoryInvalid(f"passage {passage}: {e}") from e
        if self._writer and not self._writer.has_room(sum(map(len, data))):
            self.finish()
        if not self._writer:
            name = files.made_name(os.getpid(), next(_numbers))
            self._writer = SegmentWriter(self._folder, 0, self._cap, name=name)
        self._writer.add(passage, layout, data)
        self._held.append((passage, json.dumps(layout, separators=(",", ":")), memory.anchors, memory.source_len))

    def finish(self) -> None:
        if not self._writer:
            return
        writer, self._writer = self._writer, None
        info, slots = writer.finish()
        memories = tuple(
            MadeMemory(passage, s.offset, s.length, layout, s.xxh3.hex(), anchors, source_len)
            for (passage, layout, anchors, source_len), s in zip(self._held, slots, strict=True)
        )
        self._held.clear()
        self.done.append(MadeSegment(writer.name, info.size, info.start, info.header.hex(), memories))

    def abort(self) -> None:
        if self._writer:
            self._writer.abort()
        discard(self._folder, self.done)
