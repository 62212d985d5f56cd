"""Which tokens of a passage become its anchors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch

from sac_rag.registry import Registry

Selector = Callable[[Sequence[int], int], torch.Tensor]
"""(token ids, number of anchors) -> ascending positions, int64, shape (anchors,)."""

SELECTORS = Registry(
    "selector",
    {
        "uniform": "sac_rag.compress.selectors:uniform",
        "random": "sac_rag.compress.selectors:random",
    },
)


def anchor_count(length: int, ratio: float) -> int:
    """Anchors of a passage: length / ratio to the nearest integer (halves up), at least 1, at most `length`.

    The paper writes floor (section 3.2); its published code rounds. At 510 tokens both give 102, 34 and 10
    for 5x, 15x and 51x.
    """
    return min(length, max(1, math.floor(length / ratio + 0.5)))


def uniform(token_ids: Sequence[int], count: int) -> torch.Tensor:
    """The middle token of each of `count` equal chunks (SAC, section 3.2): floor((2i + 1) L / 2|S|)."""
    i = torch.arange(count, dtype=torch.int64)
    return (2 * i + 1) * len(token_ids) // (2 * count)


def random(token_ids: Sequence[int], count: int) -> torch.Tensor:
    """Distinct tokens drawn at random (SAC, table 4), seeded by the passage itself so that indexing repeats."""
    raw = b"".join(int(t).to_bytes(4, "little") for t in token_ids)
    seed = int.from_bytes(hashlib.sha256(raw).digest()[:7], "little")
    order = torch.randperm(len(token_ids), generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values
