"""Several libraries read as one: hits, scores and answers are those of one library that holds all documents."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from langchain_sac.searching import to_documents
from sac_rag import SacRag
from sac_rag.answer.conversation import Conversation
from sac_rag.errors import ConfigError, LibraryMismatch, LibraryNotFound, MemoryDamaged, PassageGone
from sac_rag.library.joined import JoinedLibrary, owners_of
from sac_rag.places import places_of
from sac_rag.records import Document, Hit

TOPICS = "tides canal bridge whale rooster lighthouse harbour engine comet orchard".split()
DOCUMENTS = [
    Document(
        f"{topic}-{number}.md",
        f"The {topic} of {number} is told of in the {TOPICS[(at + number) % 10]} book. "
        f"Its {TOPICS[(at * 3 + 1) % 10]} was seen {number * 7} times near the {topic}.",
        meta={"team": ("sea", "land")[at % 2], "number": number},
    )
    for at, topic in enumerate(TOPICS)
    for number in (1, 2)
]
COPY = Document("copied.md", DOCUMENTS[0].text)
"""The words of another document, which a question reads once."""
QUESTIONS = ["Which book tells of the whale?", "the the rooster seen 14 times", "What was near the orchard?"]


def made(folder: Path, config: Any, documents: list[Document]) -> Path:
    with SacRag.open(folder, config=config, write=True, create=True) as rag:
        # One by one: the last bits of a vector change with what is embedded beside it.
        vectors = {d.uri: rag.embed([d.text])[0] for d in documents}
        rag.put(documents, vectors=vectors, embedder=rag.embedder.fingerprint)
    return folder


@pytest.fixture
def config(tiny_config: Any) -> Any:
    return tiny_config


@pytest.fixture
def places(config: Any, tmp_path: Path) -> list[Path]:
    """Three libraries of unlike sizes."""
    every = [*DOCUMENTS, COPY]
    parts = (every[:3], every[3:11], every[11:])
    return [made(tmp_path / f"part{n}.lib", config, list(part)) for n, part in enumerate(parts)]


@pytest.fixture
def whole(config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with SacRag.open(made(tmp_path / "whole.lib", config, [*DOCUMENTS, COPY])) as rag:
        yield rag


@pytest.fixture
def joined(places: list[Path]) -> Iterator[SacRag]:
    with SacRag.open(places) as rag:
        yield rag


def test_hits_and_scores_are_those_of_one_library(whole: SacRag, joined: SacRag) -> None:
    assert joined.library.head.passages == whole.library.head.passages == 21
    found = 0
    for question in QUESTIONS:
        (vector,) = whole.embed([question], kind="query")
        for mode in ("hybrid", "dense", "lexical"):
            for k in (1, 4, 30):
                for how in ({}, {"distinct": True}, {"where": {"team": "sea"}}, {"min_score": 0.2}):
                    asked: Any = (vector, question, k)
                    want = whole.library.search(*asked, mode=mode, **how)
                    assert joined.library.search(*asked, mode=mode, **how) == want
                    found += len(want)
    assert found > 500
    assert joined.diverse(QUESTIONS[0], 3, fetch=8) == whole.diverse(QUESTIONS[0], 3, fetch=8)


@pytest.mark.parametrize("settings", [{}, {"k": 3, "fidelity": "mixed"}, {"text": True}, {"search": "lexical"}])
def test_answers_are_those_of_one_library(whole: SacRag, joined: SacRag, settings: dict[str, Any]) -> None:
    read = set()
    for question in QUESTIONS:
        want = whole.ask(question, max_new_tokens=12, where={"team": {"$ne": "none"}}, **settings)
        got = joined.ask(question, max_new_tokens=12, where={"team": {"$ne": "none"}}, **settings)
        assert dataclasses.replace(got, timings=want.timings, confidence=want.confidence) == want
        assert got.confidence == pytest.approx(want.confidence, abs=1e-4)
        read |= {part for hit in got.sources for part in joined.library.parts if part.holds(hit.passage.id)}
    assert len(read) > 1


def test_conversations_and_tags(whole: SacRag, joined: SacRag) -> None:
    talks = Conversation(), Conversation()
    for question in (QUESTIONS[0], "And its rooster?"):
        want, got = (
            r.ask(question, max_new_tokens=6, conversation=t) for r, t in zip((whole, joined), talks, strict=True)
        )
        assert got.text == want.text and got.sources == want.sources
    (passage,) = whole.library.passages("whale-2.md")
    tag = joined.tag(passage.id)
    assert joined.cite(tag) != (tag,)
    assert whole.cite(tag) == (tag,)
    assert joined.extents([passage.id]) == whole.extents([passage.id])


def test_a_change_of_one_is_seen_at_the_next_question(places: list[Path], joined: SacRag) -> None:
    def retrieve() -> list[Hit]:
        return joined.retrieve("A zeppelin over the harbour")

    before, pinned = joined.library.head, joined.library.pinned()
    assert not [h for h in retrieve() if h.passage.document == "new.md"]
    with SacRag.open(places[1], write=True) as rag:
        rag.put([Document("new.md", "A zeppelin came over the harbour.")])
        rag.remove(["whale-1.md"])
    assert retrieve()[0].passage.document == "new.md"
    after = joined.library.head
    assert after.generation > before.generation and after.passages == before.passages
    assert [d.uri for d in pinned.documents(["new.md", "whale-1.md"])] == ["whale-1.md"]
    assert [d.uri for d in joined.library.documents(["new.md", "whale-1.md"])] == ["new.md"]
    (gone,) = pinned.passages("whale-1.md")
    with pytest.raises(PassageGone, match=f"no passage {gone.id!r}"):
        joined.library.load([gone.id])


def test_a_passage_that_two_hold_is_read_once(places: list[Path], config: Any, tmp_path: Path) -> None:
    again = made(tmp_path / "again.lib", config, DOCUMENTS[:3])
    with SacRag.open([places[0], again]) as rag:
        ids = [hit.passage.id for hit in rag.retrieve(QUESTIONS[0])]
        assert len(ids) == len(set(ids)) == 3
        assert len(rag.library.load([*ids, ids[0]])) == 4


def test_two_texts_of_one_name_are_two_documents(config: Any, tmp_path: Path) -> None:
    """A filter leads to its own: to neither the words nor the metadata of what another library calls the same."""
    texts = {"sea": "The harbour has a secret pier.", "land": "The orchard has a secret gate. Its key is a pear."}
    notes = [[Document("note.md", text, meta={"team": team})] for team, text in texts.items()]
    parts = [made(tmp_path / f"{n}.lib", config, note) for n, note in enumerate(notes)]
    for order in (parts, parts[::-1]):
        with SacRag.open(order) as rag:
            for team, text in texts.items():
                where = {"team": team}
                assert [p.text for p in rag.library.passages("note.md", where=where)] == [text]
                assert [p.text for p in rag.library.passages(where=where)] == [text]
                assert owners_of(rag.library, ["note.md"], where)["note.md"].meta["team"] == team
                (found,) = to_documents(rag, rag.retrieve("secret", where=where), where)
                assert (found.page_content, found.metadata["team"]) == (text, team)
            first = rag.library.parts[0].passages("note.md")
            assert rag.library.passages("note.md") == first and len(rag.library.passages()) == 2
            assert owners_of(rag.library, ["note.md"])["note.md"] == rag.library.parts[0].documents()[0]
            assert rag.library.passages("note.md", where={"team": "none"}) == []


def spoil(library: Path, share: float) -> None:
    """Turn the bytes of its memories round, from a share of each file on."""
    for segment in library.glob("seg-*"):
        data = segment.read_bytes()
        start = int(len(data) * share)
        segment.write_bytes(data[:start] + bytes(b ^ 255 for b in data[start:]))


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["whole", "half"])
def test_a_memory_that_is_damaged_in_one_is_read_from_another(
    places: list[Path], config: Any, tmp_path: Path, share: float
) -> None:
    again = made(tmp_path / "again.lib", config, DOCUMENTS[:3])
    with SacRag.open(again) as rag:
        ids = [p.id for p in rag.library.passages()]
        want, answer = rag.library.load(ids), rag.ask(QUESTIONS[0], max_new_tokens=5).text
    spoil(places[0], share)
    with SacRag.open([places[0], again]) as rag:
        with pytest.raises(MemoryDamaged):
            rag.library.parts[0].load(ids)
        for got, kept in zip(rag.library.load(ids), want, strict=True):
            assert got.keys.equal(kept.keys) and got.values.equal(kept.values)
        assert rag.ask(QUESTIONS[0], max_new_tokens=5).text == answer
    spoil(again, share)
    with SacRag.open([places[0], again]) as rag, pytest.raises(MemoryDamaged, match=places[0].name):
        rag.library.load(ids)
    with SacRag.open([places[0], places[1]]) as rag, pytest.raises(PassageGone, match="'nothing'"):
        rag.library.load([ids[0], "nothing"])


def test_libraries_that_were_made_differently_are_refused(places: list[Path], config: Any, tmp_path: Path) -> None:
    other = made(tmp_path / "other.lib", dataclasses.replace(config, ratio=2.0), DOCUMENTS[:1])
    message = rf"{places[0]} and {other} cannot be read as one: ratio is {config.ratio} in .* and 2.0 in"
    with pytest.raises(LibraryMismatch, match=message):
        SacRag.open([places[0], other])
    codec = made(tmp_path / "codec.lib", dataclasses.replace(config, codec="int8"), DOCUMENTS[:1])
    with pytest.raises(LibraryMismatch, match=r"codec is '\w+' in .* and 'int8' in"):
        SacRag.open([places[0], codec])
    parts = [SacRag.open(p).library.parts[0] for p in (places[0], other)]
    with pytest.raises(LibraryMismatch, match="ratio is"):
        JoinedLibrary(parts)


def test_what_cannot_be_opened_or_changed(places: list[Path], joined: SacRag, tmp_path: Path) -> None:
    missing = tmp_path / "missing.lib"
    with pytest.raises(LibraryNotFound, match=r"missing\.lib"):
        SacRag.open([places[0], missing])
    with pytest.raises(ConfigError, match="is named twice"):
        SacRag.open([places[0], tmp_path / "." / places[0].name])
    with pytest.raises(ConfigError, match="name the one that is to change"):
        SacRag.open(places, write=True)
    for change in (lambda: joined.put([COPY]), lambda: joined.remove(["copied.md"]), joined.gc):
        with pytest.raises(ConfigError, match="several libraries, which are not changed as one"):
            change()
    for name in ("", "a.lib,"):
        with pytest.raises(ConfigError, match="name one, or several"):
            places_of(name or ["", "b.lib"])


def test_names_with_commas(places: list[Path], config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = made(tmp_path / "plain.lib", config, DOCUMENTS[:1]).rename(tmp_path / "x,y.lib")
    assert places_of("x,y.lib") == ["x,y.lib"] and places_of("x,z.lib") == ["x", "z.lib"]
    assert places_of(folder) == [str(folder)]
    with pytest.raises(ConfigError, match=r"x,y\.lib has a comma"):
        SacRag.open([places[0], folder])


def test_one_text_names_them_and_pickles_open_them_again(places: list[Path], joined: SacRag) -> None:
    text = ",".join(map(str, places))
    assert str(joined.library.path) == text
    assert copy.deepcopy(joined) is joined
    with SacRag.open(text) as named, pickle.loads(pickle.dumps(joined)) as again:
        for rag in (named, again):
            assert rag.retrieve(QUESTIONS[0]) == joined.retrieve(QUESTIONS[0])
    stats = joined.stats()
    assert stats.passages == 21 and stats.total_bytes == sum(p.stats().total_bytes for p in joined.library.parts)


def test_the_command_line_asks_several(places: list[Path], whole: SacRag) -> None:
    from sac_cli.main import app

    text = ",".join(map(str, places))
    run = CliRunner().invoke(app, ["ask", QUESTIONS[0], "--library", text, "--max-new-tokens", "8", "--no-warm"])
    assert run.exit_code == 0, run.output
    assert whole.ask(QUESTIONS[0], max_new_tokens=8).text in run.stdout
