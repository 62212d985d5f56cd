"""Memory that the CPU's kernels keep for shapes they have seen."""

from __future__ import annotations

import os

INDEXING = 64
"""More kernels than one batch has different shapes."""
SERVING = 256
"""Those of questions of usual lengths beside: their shapes come again."""


def bound_caches(capacity: int = INDEXING) -> None:
    """Let this process keep few compiled kernels; to be called before it computes anything.

    oneDNN and torch keep a thousand each. Batches of passages have a new shape each time, so that what is kept is
    never used again: about 7 MB a batch, and over a gigabyte in a long run. Settings from outside stay.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(capacity))
