"""Nothing is searched for where nothing is asked; whatever else stands beside a greeting makes it a question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag import Conversation, SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.small_talk import MOST, NOTICE, is_small_talk
from sac_rag.answer.tags import PassageRef
from sac_rag.records import Document
from tests.answer.test_chat import TEMPLATE

CANAL = "How many miles does the Erie Canal span?"


@pytest.mark.parametrize(
    "message",
    ["Hello", "hello!", "Hello?", "Hi there :)", "Good morning, everyone.", "Thanks!",
     "Thank you very much for the help!",
     "Many thanks for everything", "Great, got it.", "OK", "Ok, thanks. Bye bye!", "How are you today?",
     "What\u2019s up?", "See you later", "\U0001f44d", "!!!"],
)  # fmt: skip
def test_what_asks_nothing(message: str) -> None:
    assert is_small_talk(message)


@pytest.mark.parametrize(
    "message",
    ["Hello, who discovered Pluto?", "Hello World", "Who says hello to Santa Claus?", "Hi-fi", "Thanks to whom is it?",
     "Thanks, and its moon?", "OK?", "OK, go on!", "How are you made?", "How is it going to end?",
     "Good morning America",
     "Great Barrier Reef", "See you in court", "Hey Jude", "Cool temperatures", "Good day care", "Is it ok?", "No",
     "1930",
     "\u6f22\u5b57", "?", "", " \n", "Thanks " * MOST],
)  # fmt: skip
def test_near_misses_are_questions(message: str) -> None:
    assert not is_small_talk(message)


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, write=True, create=True) as opened:
        opened.put([Document("canal", "The Erie Canal spans 363 miles. Hello, said the captain. Thanks!")])
        monkeypatch.setattr(opened.engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
        yield opened


def read(rag: SacRag, prompt: Any) -> str:
    """What a prompt says beside its memories."""
    tokens = [t for part in prompt.parts if isinstance(part, list) for t in part]
    return str(rag.engine.method.backbone.tokenizer.decode(tokens))


@pytest.mark.parametrize("settings", [{}, {"fidelity": "text"}, {"fidelity": "mixed"}, {"text": True}])
def test_it_is_answered_by_the_model_alone(
    rag: SacRag, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    prompts: list[Any] = []
    submit = rag.engine.service.submit
    monkeypatch.setattr(rag.engine.service, "submit", lambda p, *a, **k: prompts.append(p) or submit(p, *a, **k))  # type: ignore[func-returns-value]
    answer = rag.ask("Thanks!", max_new_tokens=4, **settings)
    assert (answer.sources, answer.usage.anchors, answer.abstained, answer.notices) == ((), 0, False, (NOTICE,))
    assert read(rag, prompts[-1]) == "<|im_start|>user\nThanks!<|im_end|>\n<|im_start|>assistant\n"
    for asked, more in (("Thanks!", {"small_talk": False}), ("Hello, what did the captain say?", {})):
        assert rag.ask(asked, max_new_tokens=4, **{**settings, **more}).sources
    hits = rag.retrieve("Thanks!")
    assert rag.ask("Thanks!", hits=hits, max_new_tokens=4, **settings).sources == tuple(hits)


def test_it_is_no_turn_of_a_conversation(rag: SacRag) -> None:
    talk, short = Conversation("Be brief."), {"max_new_tokens": 4}
    first = rag.ask(CANAL, conversation=talk, **short)
    assert rag.ask("Thanks!", conversation=talk, **short).notices == (NOTICE,)
    assert len(talk) == 1 and talk.searched("And why?") == f"{CANAL} And why?"
    turns = [("Hello!", "Hello."), (CANAL, first.text), ("Thanks!", "My pleasure.")]
    replayed = rag.replay(turns, instructions="Be brief.")
    assert len(replayed) == 1
    why = [rag.ask("And why?", conversation=t, **short) for t in (talk, replayed)]
    assert (why[0].text, why[0].usage.attended) == (why[1].text, why[1].usage.attended)


def test_messages_that_are_small_talk_are_read_without_their_passages(rag: SacRag) -> None:
    (passage,) = map(PassageRef, rag.library.passage_ids("canal"))
    own = rag.layout("", "Hello!")
    plain = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    system, persona = Message("system", (own[0][1],)), Message("system", ("You are Ada.",))
    asked = Message("user", (passage, own[1][1]))
    earlier = [Message("user", (passage, CANAL)), Message("assistant", ("363 miles",))]
    for messages in ([system, asked], [Message("system", ("Read: ", passage)), *earlier, Message("user", ("Hello!",))]):
        prompt = rag.conversation(messages)
        assert (prompt.slots, read(rag, prompt), prompt.notices) == (0, plain, (NOTICE,))
        assert rag.conversation(messages, small_talk=False).slots > 0
    kept = rag.conversation([persona, asked])
    assert read(rag, kept) == "<|im_start|>system\nYou are Ada.<|im_end|>\n" + plain
    for untouched in (
        [persona, Message("user", ("Why?",)), Message("assistant", ("So.",)), Message("user", ("Thanks!",))],
        [Message("user", (passage,))],
        [Message("user", (passage, "Hello, why?"))],
        [*earlier[:1], Message("user", ("Thanks!",))],
    ):
        assert rag.conversation(untouched).notices == ()
        assert rag.conversation(untouched).units() == rag.conversation(untouched, small_talk=False).units()
