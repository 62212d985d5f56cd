"""Memories of passages that are in no library: LRU cache of what was compressed as it passed by."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sac_rag.answer.engine import Engine
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import ConfigError
from sac_rag.library.filters import fitting

PASSAGE_CACHE_BYTES = 1 << 30
"""Bytes of keys and values held; beyond, the longest unused go."""


@dataclass(frozen=True)
class _Held:
    text: str
    meta: Mapping[str, Any]
    memories: list[AnchorKV] = field(default_factory=list)
    """Of a passage: of its consecutive chunks."""
    parts: tuple[str, ...] = ()
    """Of a text longer than a passage: the ids of its passages, in order, which are held by themselves."""
    vector: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(m.nbytes for m in self.memories)


class PassageCache:
    """id -> a passage's memory, or the passages of a longer text. Safe to share between threads."""

    def __init__(self, limit: int = PASSAGE_CACHE_BYTES) -> None:
        self.limit = limit
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def fits(self, text_id: str, where: Mapping[str, Any] | None) -> bool:
        """Whether a text is held and its metadata fits a filter, which is as in `Library.search`; none fits none."""
        with self._lock:
            held = self._held[text_id] if self._passages(text_id) else None
        if held is None or not where:
            return held is not None
        return bool(held.meta) and fitting(where)(held.meta)

    def compress(
        self,
        texts: Sequence[str],
        engine: Engine,
        ratio: float,
        cut: Callable[[str], Sequence[str]],
        meta: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Ids of the texts, which are compressed unless they are held already. Raises ConfigError for a blank text.

        cut: a text -> the passages that it is, itself where it is no longer than one. One text under two `meta` has two
        ids: who may read one need not be allowed to read the other.
        """
        about = json.dumps(meta, sort_keys=True).encode() + b"\0" if meta else b""

        def id_of(text: str) -> str:
            return hashlib.sha256(b"passing\0" + about + text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

        if blank := [t for t in texts if not t.strip()]:
            raise ConfigError(f"a blank text ({blank[0]!r}) has nothing to remember: leave it out")
        ids = [id_of(t) for t in texts]
        with self._lock:
            held = {i: self._touch(i) for i in ids}
        new = {i: t for i, t in zip(ids, texts, strict=True) if not held[i]}
        passages = {i: {id_of(part): part for part in cut(t)} for i, t in new.items()}
        with self._lock:
            todo = {i: part for parts in passages.values() for i, part in parts.items() if not self._touch(i)}
        made: list[list[AnchorKV]] = []
        if todo:
            with engine.busy():
                contexts = [engine.method.pieces(engine.method.backbone.tokens(t)) for t in todo.values()]
                found = engine.method.compress_contexts(contexts, ratio)
                made = [[kv.to(device="cpu") for kv in kvs] for kvs in found]
        if new:
            about_it = dict(meta or {})
            with self._lock:
                for (i, text), memories in zip(todo.items(), made, strict=True):
                    self._held[i] = _Held(text, about_it, memories)
                for i, parts in passages.items():
                    if tuple(parts) != (i,):
                        self._held[i] = _Held("", about_it, parts=tuple(parts))
                self._make_room({*ids, *(j for i in ids for j in self._passages(i))})
        return ids

    def _make_room(self, kept: set[str]) -> None:
        total = sum(held.nbytes for held in self._held.values())
        for i in list(self._held):
            if total <= self.limit:
                break
            if i not in kept:
                total -= self._held.pop(i).nbytes

    def get(self, text_id: str) -> list[AnchorKV] | None:
        """Memories, in order; None when a text is not held (any more)."""
        with self._lock:
            found = [self._held[i] for i in self._touch(text_id)]
        return [m for held in found for m in held.memories] if found else None

    def passages(self, text_id: str) -> tuple[str, ...]:
        """The ids of the passages that a text is, its own where it is one; none when it is not held."""
        with self._lock:
            return self._passages(text_id)

    def text(self, text_id: str) -> str | None:
        """What it says; None when it is not held."""
        with self._lock:
            return self._held[text_id].text if self._passages(text_id) else None

    def extent(self, text_id: str) -> tuple[int, int] | None:
        """(anchors, source tokens), or None."""
        with self._lock:
            memories = [m for i in self._passages(text_id) for m in self._held[i].memories]
        return (sum(m.anchors for m in memories), sum(m.source_len for m in memories)) if memories else None

    def vectors(self, ids: Sequence[str], embed: Callable[[Sequence[str]], np.ndarray]) -> dict[str, np.ndarray]:
        """Vectors of those of the passages that are held, each made once."""
        with self._lock:
            found = {i: self._held[i] for i in ids if i in self._held}
        bare = [i for i, held in found.items() if held.vector is None]
        if bare:
            made = dict(zip(bare, embed([found[i].text for i in bare]), strict=True))
            with self._lock:
                self._held.update({i: replace(self._held[i], vector=v) for i, v in made.items() if i in self._held})
        else:
            made = {}
        return {i: v for i, held in found.items() if (v := made.get(i, held.vector)) is not None}

    def _passages(self, text_id: str) -> tuple[str, ...]:
        held = self._held.get(text_id)
        if held is None or not all(i in self._held for i in held.parts):
            return ()
        return held.parts or (text_id,)

    def _touch(self, text_id: str) -> tuple[str, ...]:
        """The passages of a text, which are the last to be forgotten from now on."""
        found = self._passages(text_id)
        for i in (text_id, *found) if found else ():
            self._held.move_to_end(i)
        return found
