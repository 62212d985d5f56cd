"""Texts to finished segment files and vectors: a pure function of its input, without library and without lock.

Every batch depends on the work alone, so that ids and bytes are the same whichever process makes it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.library import made as segments
from sac_rag.library.codecs import Codec
from sac_rag.library.made import MadeSegment
from sac_rag.library.segments import SEGMENT_BYTES

EMBEDDED_TOGETHER = 256
"""Passages embedded between two reports of progress; it has a say in the last bits of a vector."""

Progress = Callable[[str, int], None]
"""Called with the step ("compressing" or "embedding") and the number of passages compressed so far."""


class Compressor(Protocol):
    """What compresses passages: a model with an adapter."""

    @property
    def tokenizer(self) -> Any:
        """The base model's, a fast tokenizer of Hugging Face."""

    def busy(self) -> AbstractContextManager[None]:
        """Held while the tokenizer is used."""

    def compress(self, texts: Sequence[str], ratio: float, done: Callable[[int], None] | None = None) -> list[AnchorKV]:
        """Memories of passages, on the CPU. done: called with the number compressed, now and then."""


class Embeds(Protocol):
    """What makes vectors of texts."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """float32 of shape (len(texts), dim)."""


@dataclass(frozen=True)
class Work:
    """What is to be made, as (passage id, text) pairs."""

    compress: tuple[tuple[str, str], ...] = ()
    embed: tuple[tuple[str, str], ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        return {"compress": self.compress, "embed": self.embed}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Work:
        return cls(*(tuple((i, text) for i, text in values[name]) for name in ("compress", "embed")))


@dataclass(frozen=True)
class MakeResult:
    """What came of it: segment files, and float32 vectors of shape (dim,) by passage id."""

    segments: tuple[MadeSegment, ...] = ()
    vectors: dict[str, np.ndarray] = field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        vectors = {i: base64.b64encode(v.astype("<f4").tobytes()).decode() for i, v in self.vectors.items()}
        return {"segments": [s.to_mapping() for s in self.segments], "vectors": vectors}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> MakeResult:
        vectors = {i: np.frombuffer(base64.b64decode(v), "<f4") for i, v in values["vectors"].items()}
        return cls(tuple(map(MadeSegment.from_mapping, values["segments"])), vectors)


@dataclass(frozen=True)
class Maker:
    """Makes what a library of these settings stores. folder: where segments are written, that of the library."""

    compressor: Compressor
    embedder: Embeds
    codec: Codec
    ratio: float
    folder: Path
    segment_bytes: int = SEGMENT_BYTES

    def make(self, work: Work, progress: Progress = lambda step, count: None) -> MakeResult:
        """Raises MemoryInvalid, LibraryFull; no file is left behind then."""
        made: Sequence[MadeSegment] = ()
        if work.compress:
            progress("compressing", 0)
            memories = self.compressor.compress(
                [text for _, text in work.compress], self.ratio, lambda count: progress("compressing", count)
            )
            pairs = zip((i for i, _ in work.compress), memories, strict=True)
            made = segments.write(self.folder, self.codec, pairs, self.segment_bytes)
        vectors: dict[str, np.ndarray] = {}
        try:
            for start in range(0, len(work.embed), EMBEDDED_TOGETHER):
                progress("embedding", len(work.compress))
                some = work.embed[start : start + EMBEDDED_TOGETHER]
                vectors |= zip((i for i, _ in some), self.embedder.encode([text for _, text in some]), strict=True)
        except BaseException:
            segments.discard(self.folder, made)
            raise
        return MakeResult(tuple(made), vectors)
