"""Number types of stored tensors: the one table that codecs, layouts and segment headers share. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

DTYPES: dict[str, tuple[str, int]] = {
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
}
"""Name in a safetensors header: (attribute of torch, bytes a number). What is not here is refused on reading."""


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * DTYPES[dtype][1]
