"""Vectors that the library's embedder gave out, so that they are known when they come back."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np


class KnownVectors:
    """Vectors that an embedder gave out in this process, known by their bytes; the oldest beyond `limit` are forgotten.

    Safe to share between threads.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self.limit = limit
        self._seen: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def note(self, vectors: np.ndarray) -> None:
        """vectors: float32 of shape (n, dim)."""
        with self._lock:
            self._seen.update(dict.fromkeys(map(_bytes, vectors)))
            while len(self._seen) > self.limit:
                del self._seen[next(iter(self._seen))]

    def __contains__(self, vector: Any) -> bool:
        with self._lock:
            return _bytes(vector) in self._seen


def _bytes(vector: Any) -> bytes:
    return hashlib.blake2b(np.asarray(vector, np.float32).tobytes(), digest_size=16).digest()
