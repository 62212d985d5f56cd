"""The few facts a conversion needs from the head of a .gguf file, read without its vocabulary and weights."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY, _F32 = 8, 9, 0
_ROPE_FACTORS = "rope_freqs.weight"
_MOST_KEYS = _MOST_TENSORS = 1_000_000


@dataclass(frozen=True)
class GgufHead:
    """What the conversion must know of a .gguf file before any weight is read."""

    architecture: str
    experts: int
    rope_scaling: str
    """"none" for plain RoPE."""
    rope_factors: tuple[float, ...]
    """The frequency divisors of Llama 3.1 and later, one for each rotated pair; empty for plain RoPE."""
    pre_tokenizer: str
    window: int | None = None
    """Tokens that attention is limited to; None: no limit."""


def read_head(path: Path) -> GgufHead:
    """Read the head of a .gguf file (versions 2 and 3, little-endian); raises ModelError when it is not one."""
    try:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).head()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, OverflowError, struct.error) as error:  # also an empty file, which cannot be mapped
        raise ModelError(f"{path} is not a readable .gguf file ({error})") from error


class _Cursor:
    """A place in the file; every read is checked against its end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def head(self) -> GgufHead:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not start with GGUF")
        self.at = 4
        version, tensors, keys = self.scalar("I"), self.scalar("Q"), self.scalar("Q")
        if version not in (2, 3) or tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise ValueError(f"version {version} with {tensors} tensors and {keys} keys is not supported")
        facts: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string()
            facts[key] = self.value(self.scalar("I"))
        places: dict[str, tuple[int, int, int]] = {}
        for _ in range(tensors):
            name, rank = self.string(), self.scalar("I")
            if rank > 8:
                raise ValueError(f"tensor {name!r} has {rank} dimensions")
            size = 1
            for _ in range(rank):
                size *= self.scalar("Q")
            places[name] = (self.scalar("I"), size, self.scalar("Q"))
        architecture = str(facts.get("general.architecture", ""))
        return GgufHead(
            architecture,
            int(facts.get(f"{architecture}.expert_count") or 0),
            str(facts.get(f"{architecture}.rope.scaling.type") or "none"),
            self.factors(places.get(_ROPE_FACTORS), int(facts.get("general.alignment") or 32)),
            str(facts.get("tokenizer.ggml.pre") or ""),
            int(facts.get(f"{architecture}.attention.sliding_window") or 0) or None,
        )

    def factors(self, place: tuple[int, int, int] | None, alignment: int) -> tuple[float, ...]:
        if place is None:
            return ()
        kind, count, offset = place
        if kind != _F32 or count > 4096 or alignment < 1:
            raise ValueError(f"{_ROPE_FACTORS} is of type {kind} with {count} values")
        self.at += -self.at % alignment + offset
        return struct.unpack(f"<{count}f", self.take(4 * count))

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError(f"it ends at byte {len(self.data)}, inside its head")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"a key has the unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def skip_array(self) -> None:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS:
            self.take(struct.calcsize(f"<{_SCALARS[kind]}") * count)
            return
        if kind != _STRING:  # arrays of arrays do not occur
            raise ValueError(f"an array has the unknown type {kind}")
        for _ in range(count):
            self.take(self.scalar("Q"))
