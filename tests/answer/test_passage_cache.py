"""Memories of passages that are in no library: made once, bounded, known by metadata to a filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling
from sac_rag.answer.tags import PassageRef
from sac_rag.errors import ConfigError
from sac_rag.records import Document

TEXTS = [f"House {n} stands on the hill." for n in range(4)]


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, write=True, create=True) as opened:
        opened.put([Document("river", "The river is wide.", meta={"tenant": "a"})])
        yield opened


@pytest.fixture
def compressed(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each pass of the encoder read."""
    made: list[int] = []
    method = rag.engine.method
    compress = method.compress_contexts
    monkeypatch.setattr(method, "compress_contexts", lambda c, r, **k: made.append(len(c)) or compress(c, r, **k))  # type: ignore[func-returns-value]
    return made


def test_a_text_is_compressed_once(rag: SacRag, compressed: list[int]) -> None:
    one, two = rag.remember(TEXTS[:2])
    assert rag.remember([TEXTS[1], TEXTS[0], TEXTS[1]]) == [two, one, two]
    assert compressed == [2]
    (held,), (want,) = rag._loose.get(one), rag.engine.compress(TEXTS[:1], rag.config.ratio)
    assert held.keys.equal(want.keys) and held.values.equal(want.values)
    with pytest.raises(ConfigError, match="blank"):
        rag.remember([" \n"])


def test_the_longest_unused_are_forgotten_for_room(rag: SacRag, compressed: list[int]) -> None:
    ids = rag.remember(TEXTS[:3])
    rag._loose.limit = sum(m.nbytes for i in ids for m in rag._loose.get(i))
    rag.remember(TEXTS[:1])
    (new,) = rag.remember(TEXTS[3:])
    tags = [rag.tag(i) for i in (*ids, new)]
    assert [rag.cite(t) for t in tags] == [
        (PassageRef(ids[0]),), (tags[1],), (PassageRef(ids[2]),), (PassageRef(new),),
    ]  # fmt: skip
    assert rag._loose.get(ids[1]) is None
    assert rag.remember(TEXTS[1:2]) == [ids[1]] and compressed == [3, 1, 1]


def test_a_filter_goes_by_the_metadata_of_each(rag: SacRag) -> None:
    (bare,), (mine,) = rag.remember(TEXTS[:1]), rag.remember(TEXTS[:1], meta={"tenant": "a", "kind": "note"})
    (theirs,) = rag.remember(TEXTS[:1], meta={"tenant": "b"})
    (stored,) = rag.library.passage_ids("river")
    assert len({bare, mine, theirs}) == 3

    def read(where: dict[str, Any] | None) -> list[str]:
        return [
            p.id for i in (bare, mine, theirs, stored) for p in rag.cite(rag.tag(i), where=where) if p != rag.tag(i)
        ]  # type: ignore[union-attr]

    assert read(None) == [bare, mine, theirs, stored]
    assert read({"tenant": "a"}) == [mine, stored]
    assert read({"tenant": ["a", "b"]}) == [mine, theirs, stored]
    assert read({"tenant": "a", "kind": "note"}) == [mine]
    assert read({"tenant": "c"}) == []
    assert read({"tenant": {"$in": ["a"]}, "$or": [{"kind": "note"}, {"kind": None}]}) == [mine, stored]
    assert read({"tenant": {"$ne": "b"}}) == [mine, stored], (
        "what has no metadata fits no filter, a negated one neither"
    )
    assert read({"kind": None}) == [theirs, stored]


def test_a_long_text_is_held_as_the_passages_that_it_would_be_stored_as(rag: SacRag, compressed: list[int]) -> None:
    text = " ".join(f"House {n} stands on the hill." for n in range(9))  # a token of this model is a byte
    (whole,) = rag.remember([text], meta={"tenant": "a"})
    passages = [p.text for p in rag.split(Document("", text))]
    held, want = rag._loose.get(whole), rag.engine.compress(passages, rag.config.ratio)
    assert len(passages) > 1 and compressed == [len(passages), len(passages)]
    assert [m.source_len for m in held] == [len(p) for p in passages]
    assert all(a.keys.equal(b.keys) for a, b in zip(held, want, strict=True))
    assert rag.extents([whole]) == [(sum(m.anchors for m in held), sum(map(len, passages)))]
    assert rag.cite(rag.tag(whole), where={"tenant": "a"}) == (PassageRef(whole),)
    assert rag.remember([text, passages[1]], meta={"tenant": "a"}) == [whole, rag._loose.passages(whole)[1]]
    # One passage is forgotten: so is the text, until it comes again.
    rag._loose._held.pop(rag._loose.passages(whole)[0])
    assert rag.cite(rag.tag(whole)) == (rag.tag(whole),) and rag._loose.get(whole) is None
    assert rag.remember([text], meta={"tenant": "a"}) == [whole]
    assert compressed[2:] == [1] and rag.cite(rag.tag(whole)) == (PassageRef(whole),)


def test_a_long_text_within_white_space_is_one_passage(rag: SacRag) -> None:
    (padded,) = rag.remember([" " * 200 + TEXTS[0]])
    (bare,) = rag.remember(TEXTS[:1])
    assert padded != bare and rag._loose.passages(padded) == (bare,)
    assert list(rag.converse([Message("user", (PassageRef(padded), "Why?"))], Sampling(3, min_new_tokens=3)))
