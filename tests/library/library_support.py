"""Documents, vectors and memories that follow from their ids alone, so any state can be checked without a record."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.errors import LibraryCorrupt
from sac_rag.library import made
from sac_rag.library.codecs import get_codec
from sac_rag.library.library import Library, Transaction
from sac_rag.records import Document, Passage

FULL = os.environ.get("SAC_TEST_DEPTH") == "full"
"""Many more kills, mutations and steps than in the default run."""
DIM = 8
FINGERPRINT = {"model": "tiny", "ratio": 5.0, "codec": "bf16", "format": 1}
State = dict[str, list[str]]
"""What a library should hold: uri to passage texts in order."""


def passages_of(uri: str, texts: Sequence[str]) -> list[Passage]:
    seen: Counter[str] = Counter()
    out, at = [], 0
    for ordinal, text in enumerate(texts):
        raw = "\0".join((uri, text, str(seen[text])))
        seen[text] += 1
        passage_id = hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        out.append(Passage(passage_id, uri, ordinal, text, at, at + len(text), f"h{ordinal}", 20, {"n": ordinal}))
        at += len(text) + 1
    return out


def vector_of(passage_id: str, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(int(passage_id[:12], 16)).normal(size=dim)


def memory_of(passage_id: str, dtype: torch.dtype = torch.bfloat16) -> AnchorKV:
    g = torch.Generator().manual_seed(int(passage_id[:12], 16))
    anchors = 3 + int(passage_id[12], 16) % 5
    keys, values = (torch.randn(2, 2, anchors, 8, generator=g).to(dtype) for _ in range(2))
    return AnchorKV.even(keys, values, torch.arange(anchors) * 5 + 2, anchors * 5)


def put(
    tx: Transaction, library: Library, uri: str, texts: Sequence[str], meta: Mapping[str, Any] | None = None
) -> list[Passage]:
    passages = passages_of(uri, texts)
    stored = set(library.passage_ids(uri))
    new = [p.id for p in passages if p.id not in stored]
    tx.put(
        Document(uri, "\n".join(texts), meta=dict(meta or {})),
        passages,
        {i: memory_of(i) for i in new},
        {i: vector_of(i) for i in new},
        content_hash=content_hash(texts),
    )
    return passages


def put_made(library: Library, uri: str, texts: Sequence[str]) -> None:
    """As `put` in a transaction of its own, with memories out of segments that were finished before it."""
    passages, stored = passages_of(uri, texts), set(library.passage_ids(uri))
    new = [p.id for p in passages if p.id not in stored]
    codec = get_codec(library.head.codec)
    segments = made.write(library.path, codec, ((i, memory_of(i)) for i in new), library.segment_bytes)
    with library.transaction() as tx:
        for segment in segments:
            tx.adopt(segment)
        document = Document(uri, "\n".join(texts))
        tx.put(document, passages, {}, {i: vector_of(i) for i in new}, content_hash=content_hash(texts))


def fill(library: Library, state: Mapping[str, Sequence[str]]) -> None:
    with library.transaction() as tx:
        for uri, texts in state.items():
            put(tx, library, uri, texts)


def content_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def same(a: AnchorKV, b: AnchorKV) -> bool:
    return (
        torch.equal(a.keys, b.keys)
        and torch.equal(a.values, b.values)
        and torch.equal(a.positions, b.positions)
        and torch.equal(a.counts, b.counts)
        and a.source_len == b.source_len
    )


def held(library: Library) -> State:
    """What the library says it holds, text by text."""
    state: State = {d.uri: [] for d in library.documents()}
    for p in library.passages():
        state[p.document].append(p.text)
    return state


def check(library: Library, state: Mapping[str, Sequence[str]]) -> None:
    """Law 6: passages, vectors and memories agree with `state` and with each other, in count, id and content."""
    assert held(library) == {uri: list(texts) for uri, texts in state.items()}
    expected = [p for uri in sorted(state) for p in passages_of(uri, state[uri])]
    assert library.passages() == expected
    ids = [p.id for p in expected]
    assert library.get(ids) == expected
    assert all(same(kv, memory_of(i)) for i, kv in zip(ids, library.load(ids), strict=True))
    assert all(library.content_hash(uri) == content_hash(texts) for uri, texts in state.items())
    stats = library.stats()
    assert (stats.documents, stats.passages) == (len(state), len(ids))
    if ids:
        hits = library.search(vector_of(ids[0]), None, len(ids) + 3, mode="dense")
        assert sorted(h.passage.id for h in hits) == sorted(ids)
        assert hits[0].passage.id == ids[0]
        assert abs(hits[0].score - 1) < 1e-6
        assert {h.passage.id for h in library.search(None, "word", len(ids), mode="lexical")} == set(ids)


def check_part(library: Library, state: Mapping[str, Sequence[str]]) -> None:
    """Of a damaged library: whatever it gives is right, and what it finds can be loaded."""
    assert library.notice
    expected = {p.id: p for uri in state for p in passages_of(uri, state[uri])}
    passages = library.passages()
    assert all(expected[p.id] == p for p in passages)
    sound = set()
    for p in passages:
        try:
            (kv,) = library.load([p.id])
            assert same(kv, memory_of(p.id))
            sound.add(p.id)
        except LibraryCorrupt:
            pass
    found = library.search(vector_of("0" * 32), "word", 99) if passages else []
    assert {h.passage.id for h in found} == sound
    assert all(expected[h.passage.id] == h.passage for h in found)
