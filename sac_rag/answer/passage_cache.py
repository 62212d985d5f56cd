"""Memories of passages that are in no library: compressed when they pass by, held as long as there is room."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sac_rag.answer.engine import Engine
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import ConfigError
from sac_rag.library.filters import fitting

PASSAGE_CACHE_BYTES = 1 << 30
"""Bytes of keys and values held; beyond, the longest unused go."""


@dataclass(frozen=True)
class _Held:
    memories: list[AnchorKV]
    meta: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(m.nbytes for m in self.memories)


class PassageCache:
    """passage id -> memories of its consecutive sub-contexts. Safe to share between threads."""

    def __init__(self, limit: int = PASSAGE_CACHE_BYTES) -> None:
        self.limit = limit
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def fits(self, passage_id: str, where: Mapping[str, Any] | None) -> bool:
        """Whether a passage is held and its metadata fits a filter, which is as in `Library.search`; none fits none."""
        with self._lock:
            held = self._held.get(passage_id)
        if held is None or not where:
            return held is not None
        return bool(held.meta) and fitting(where)(held.meta)

    def compress(
        self, texts: Sequence[str], engine: Engine, ratio: float, meta: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Ids of the texts, which are compressed unless they are held already. Raises ConfigError for a blank text.

        One text under two `meta` has two ids: who may read one need not be allowed to read the other.
        """
        about = json.dumps(meta, sort_keys=True).encode() + b"\0" if meta else b""
        ids = [_digest(about + t.encode("utf-8", "surrogatepass")) for t in texts]
        with self._lock:
            todo = {i: t for i, t in zip(ids, texts, strict=True) if i not in self._held}
            for i in ids:
                if i in self._held:
                    self._held.move_to_end(i)
        if blank := [t for t in todo.values() if not t.strip()]:
            raise ConfigError(f"a blank text ({blank[0]!r}) has nothing to remember: leave it out")
        if todo:
            with engine.busy():
                contexts = [engine.method.pieces(engine.method.backbone.tokens(t)) for t in todo.values()]
                found = engine.method.compress_contexts(contexts, ratio)
                made = [[kv.to(device="cpu") for kv in kvs] for kvs in found]
            with self._lock:
                self._held.update({i: _Held(m, dict(meta or {})) for i, m in zip(todo, made, strict=True)})
                kept = set(ids)
                total = sum(held.nbytes for held in self._held.values())
                for i in list(self._held):
                    if total <= self.limit or i in kept:
                        break
                    total -= self._held.pop(i).nbytes
        return ids

    def get(self, passage_id: str) -> list[AnchorKV] | None:
        """None when it is not held (any more)."""
        with self._lock:
            if passage_id not in self._held:
                return None
            self._held.move_to_end(passage_id)
            return self._held[passage_id].memories

    def extent(self, passage_id: str) -> tuple[int, int] | None:
        """(anchors, source tokens), or None."""
        with self._lock:
            held = self._held.get(passage_id)
        if held is None:
            return None
        return sum(m.anchors for m in held.memories), sum(m.source_len for m in held.memories)


def _digest(content: bytes) -> str:
    return hashlib.sha256(b"passing\0" + content).hexdigest()[:32]
