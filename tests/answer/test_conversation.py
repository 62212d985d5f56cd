"""Conversations: the first turn is a plain question, later ones read what is new, a full context forgets the oldest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag import Conversation, SacRag
from sac_rag.answer.conversation import MOST_TURNS
from sac_rag.answer.prompt import Recall
from sac_rag.answer.service import Generation
from sac_rag.errors import ConfigError
from sac_rag.records import Document
from tests.answer.test_chat import TEMPLATE

TEXTS = {
    "canal": "The Erie Canal spans 363 miles. It joins the Hudson to the Great Lakes.",
    "bridge": "Emily Roebling crossed the Brooklyn Bridge first. She carried a rooster.",
    "tides": "The tides follow the Moon. Spring tides come when the Sun is lined up.",
}
CANAL, BRIDGE = "How many miles does the Erie Canal span?", "Who carried a rooster across the Brooklyn Bridge?"
SHORT: dict[str, Any] = {"search": "lexical", "max_new_tokens": 6, "history": "all"}


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, write=True, create=True) as opened:
        opened.put([Document(uri, text) for uri, text in TEXTS.items()])
        monkeypatch.setattr(opened.engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
        yield opened


@pytest.fixture
def answered(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Generation]]:
    """Prompts and their answers."""
    found: list[tuple[Any, Generation]] = []
    submit = rag.engine.service.submit

    def listening(prompt: Any, *args: Any, **settings: Any) -> Generation:
        found.append((prompt, submit(prompt, *args, **settings)))
        return found[-1][1]

    monkeypatch.setattr(rag.engine.service, "submit", listening)
    return found


@pytest.mark.parametrize("fidelity", ["memory", "mixed", "text"])
def test_the_first_turn_is_a_plain_question(rag: SacRag, fidelity: str) -> None:
    talk = Conversation()
    settings = {**SHORT, "search": "dense", "k": 2, "fidelity": fidelity}
    alone, first = rag.ask(CANAL, **settings), rag.ask(CANAL, conversation=talk, **settings)
    assert (first.text, first.sources, first.fidelity) == (alone.text, alone.sources, fidelity)
    assert first.usage.anchors > 0 or fidelity == "text"
    if fidelity == "memory":  # text and its separators may be cut into tokens otherwise
        assert (first.usage, first.confidence) == (alone.usage, pytest.approx(alone.confidence, abs=1e-4))
    assert len(talk) == 1
    talk.clear()
    again = rag.ask(CANAL, conversation=talk, **settings)
    assert (again.text, len(talk)) == (first.text, 1)


def test_eight_turns_load_a_passage_once_and_read_what_is_new(
    rag: SacRag, answered: list[tuple[Any, Generation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rag.ask("Gates?", **SHORT)  # the correctness gate reads a passage before the first answer
    answered.clear()
    loads: list[str] = []
    load = rag.library.load
    monkeypatch.setattr(rag.library, "load", lambda ids: loads.extend(ids) or load(ids))  # type: ignore[func-returns-value]
    talk, before, anchors = Conversation(), 0, []
    for turn in range(8):
        question = f"{turn}. {CANAL if turn % 2 == 0 else BRIDGE}"
        answer = rag.ask(question, conversation=talk, **SHORT)
        assert [h.passage.document for h in answer.sources] == [("canal", "bridge")[turn % 2]]
        prompt, generation = answered[-1]
        anchors.append(answer.usage.anchors)
        whole = prompt.slots + prompt.tokens
        assert generation.reused >= before
        # New are the question, the answer before (6 tokens of at most 3 bytes) and the template around them.
        assert turn < 2 or whole - generation.reused <= len(question) + 18 + 60
        before = whole
    assert sorted(loads) == sorted(i for d in ("canal", "bridge") for i in rag.library.passage_ids(d))
    assert anchors[0] < anchors[1] and set(anchors[1:]) == {anchors[1]}
    assert len(talk) == 8


def test_a_full_context_forgets_the_oldest_turns_first(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 320
    monkeypatch.setattr("sac_rag.compress.backbone.Backbone.context_length", limit)
    talk, lengths, notices = Conversation(), [], []
    for turn in range(4):
        answer = rag.ask(f"{turn}. {CANAL}", conversation=talk, **SHORT)
        assert [h.passage.document for h in answer.sources] == ["canal"]
        lengths.append(len(talk))
        notices.append(answer.notices)
    assert lengths[0] == 1 and lengths[-1] < 4 and notices[0] == ()
    assert "turns forgotten, the oldest first" in notices[-1][0]
    crowded = rag.ask("rooster Moon miles?", conversation=talk, **{**SHORT, "search": "dense", "k": 3})
    assert len(talk) == 1 and 0 < len(crowded.sources) < 3
    assert any("did not fit" in n for n in crowded.notices)
    with pytest.raises(ConfigError, match=f"positions, the model has {limit - 6}"):
        rag.ask("why " * 200, conversation=talk, **SHORT)
    assert len(talk) == 1


def test_text_and_memory_may_change_from_turn_to_turn(rag: SacRag, answered: list[tuple[Any, Generation]]) -> None:
    talk = Conversation()
    first = rag.ask(CANAL, conversation=talk, text=True, **SHORT)
    second = rag.ask(BRIDGE, conversation=talk, **SHORT)
    assert (first.fidelity, first.usage.anchors) == ("text", 0)
    assert second.fidelity == "memory" and second.usage.anchors > 0
    read = [rag.engine.method.backbone.tokenizer.decode([t for p in prompt.parts if isinstance(p, list) for t in p])
            for prompt, _ in answered]  # fmt: skip
    assert TEXTS["canal"] in read[0] and TEXTS["canal"] in read[1]
    assert TEXTS["bridge"] not in read[1]


def test_what_was_removed_since_is_left_out_of_earlier_turns(rag: SacRag) -> None:
    talk = Conversation()
    first = rag.ask(CANAL, conversation=talk, **SHORT)
    rag.remove([first.sources[0].passage.document])
    with pytest.raises(ConfigError, match="shorter question"):
        rag.ask("why " * 2000, conversation=talk, **SHORT)
    dropped = rag.stream(BRIDGE, conversation=talk, **SHORT)
    next(dropped, None)
    del dropped
    second = rag.ask(BRIDGE, conversation=talk, **SHORT)
    assert [h.passage.document for h in second.sources] == ["bridge"] and len(talk) == 2
    assert second.notices == ("passages of earlier turns that the library does not hold any more, left out: 1",)
    assert rag.ask(BRIDGE, conversation=talk, **SHORT).notices == ()


def test_an_answer_that_was_not_read_to_its_end_is_no_turn(rag: SacRag) -> None:
    talk = Conversation()
    stream = rag.stream(CANAL, conversation=talk, **SHORT)
    next(stream, None)
    del stream
    assert len(talk) == 0
    rag.ask(BRIDGE, conversation=talk, **SHORT)
    assert len(talk) == 1


def test_a_replayed_conversation_goes_on_as_one_that_was_kept(rag):
    kept, turns = Conversation("Be brief."), []
    for question in ("How long is the canal?", "Who crossed the bridge?", "And the tides?"):
        replayed = rag.replay(turns, instructions="Be brief.")
        assert len(replayed) == len(kept) == len(turns)
        want = rag.ask(question, conversation=kept, max_new_tokens=5)
        got = rag.ask(question, conversation=replayed, max_new_tokens=5)
        assert (got.text, got.usage.attended) == (want.text, want.usage.attended)
        turns.append((question, want.text))


AUTO = {**SHORT, "history": "auto"}


def units(answered: list[tuple[Any, Generation]]) -> list[list[Any]]:
    return [prompt.units() for prompt, _ in answered]


def test_a_question_that_stands_by_itself_is_asked_as_without_a_conversation(
    rag: SacRag, answered: list[tuple[Any, Generation]]
) -> None:
    talk = Conversation()
    for _ in range(3):
        rag.ask(CANAL, conversation=talk, **AUTO)
    rag.ask(BRIDGE, conversation=talk, **AUTO)
    rag.ask(BRIDGE, conversation=Conversation(), **AUTO)
    canal, *more, bridge, alone = units(answered)
    assert more == [canal, canal] and bridge == alone and len(talk) == 4
    rag.ask(CANAL, conversation=talk, **SHORT)
    assert len(answered[-1][0].parts) > len(answered[0][0].parts), "history=all: behind all turns"


def test_what_refers_back_goes_on_from_the_turn_it_refers_to(
    rag: SacRag, answered: list[tuple[Any, Generation]]
) -> None:
    talk = Conversation()
    rag.ask(CANAL, conversation=talk, **AUTO)
    rag.ask(BRIDGE, conversation=talk, **AUTO)
    for question in ("And what did she carry?", "Why?"):
        rag.ask(question, conversation=talk, **AUTO)
    _, bridge, carried, why = answered
    shared = len(bridge[0].units())
    assert carried[0].units()[:shared] == bridge[0].units() and why[0].units()[:shared] == bridge[0].units()
    assert carried[1].reused >= bridge[0].slots + bridge[0].tokens and why[1].reused > carried[1].reused
    (passage,) = rag.library.passage_ids("canal")
    rag.ask("What did we talk about?", conversation=talk, **AUTO)
    read = [{i for p in prompt.parts if isinstance(p, Recall) for i in p.key[1]} for prompt, _ in answered]
    assert [passage in ids for ids in read] == [True, False, False, False, True]


def test_a_conversation_keeps_so_many_turns(rag: SacRag) -> None:
    talk = Conversation()
    for _ in range(MOST_TURNS + 1):
        rag.ask(CANAL, conversation=talk, **{**AUTO, "max_new_tokens": 1})
    assert len(talk) == MOST_TURNS and talk.searched("And why?") == f"{CANAL} And why?"


def test_an_unknown_history_is_refused(rag: SacRag) -> None:
    with pytest.raises(ConfigError, match="history is 'none'; use auto or all"):
        rag.ask(CANAL, history="none")
    with pytest.raises(ConfigError, match="history is 'some'"):
        rag.conversation([], history="some")
