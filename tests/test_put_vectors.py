"""Vectors that are ready: taken over for whole passages, refused when another embedder made them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sac_rag import SacRag
from sac_rag.errors import ConfigError, LibraryError, LibraryMismatch
from sac_rag.indexing import KnownVectors
from sac_rag.records import Document

SHORT = Document("short", "The lamp burned whale oil.", headings=((0, "Lamps"),))
LONG = Document("long", "\n\n".join(f"Keeper {n} of the lighthouse trimmed the wick of the lamp." for n in range(12)))


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "lamps.lib", config=tiny_config, write=True, create=True) as opened:
        yield opened


def stored(rag: SacRag, uri: str) -> np.ndarray:
    return rag.library.vectors(rag.library.passage_ids(uri))


def test_a_ready_vector_is_that_of_a_whole_passage_only(rag: SacRag) -> None:
    ready = rag.embed(["Something else."])[0]
    rag.put([SHORT, LONG], vectors={"short": 3 * ready, "long": ready.tolist()}, embedder=rag.embedder.fingerprint)
    assert np.allclose(stored(rag, "short"), ready[None], atol=1e-6)
    parts = [p.text for p in rag.library.passages("long")]
    assert len(parts) > 1
    assert np.allclose(stored(rag, "long"), rag.embedder.encode(parts), atol=1e-5)
    # The memory does not depend on it, and an unchanged document keeps what it has.
    rag.put([SHORT])
    assert np.allclose(stored(rag, "short"), ready[None], atol=1e-6)


def test_vectors_that_cannot_be_searched_by_are_refused_whole(rag: SacRag) -> None:
    good, own = rag.embed([SHORT.text])[0], rag.embedder.fingerprint
    with pytest.raises(LibraryMismatch, match=f"'elsewhere'.*{rag.config.embedder}.*{own}"):
        rag.put([SHORT], vectors={"short": good}, embedder="elsewhere")
    with pytest.raises(ConfigError, match="embedder"):
        rag.put([SHORT], vectors={"short": good})
    with pytest.raises(ConfigError, match="'tall'"):
        rag.put([SHORT], vectors={"tall": good}, embedder=own)
    for bad in (good[:3], good * np.nan, good * 0):
        with pytest.raises(LibraryError, match="'short'"):
            rag.put([SHORT, LONG], vectors={"short": bad}, embedder=own)
    assert rag.library.documents() == []


def test_known_vectors_are_not_embedded_again_to_be_recognised(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [SHORT.text, LONG.text]
    vectors, made_elsewhere = rag.embed(texts).tolist(), rag.embedder.encode(["A gull."])[0]
    encode, asked = rag.embedder.encode, []
    monkeypatch.setattr(rag.embedder, "encode", lambda t, **k: asked.append(list(t)) or encode(t, **k))
    assert rag.foreign_vector(texts, vectors) is None
    assert asked == []
    assert rag.foreign_vector([*texts, "A gull."], [*vectors, made_elsewhere]) is None
    assert rag.foreign_vector(["An egg.", *texts], [-made_elsewhere, *vectors]) == 0
    assert asked == [["A gull."], ["An egg."]]
    assert rag.foreign_vector(texts, [vectors[0], vectors[1][:3]]) == 1


def test_the_oldest_vectors_are_forgotten() -> None:
    made, rows = KnownVectors(limit=2), np.eye(3, dtype=np.float32)
    made.note(rows[:2])
    made.note(rows[2:])
    assert [row in made for row in rows] == [False, True, True]
    assert rows[1].tolist() in made
