"""Follow-up questions are searched for together with what they refer to; others by their own words alone."""

from __future__ import annotations

import pytest

from sac_rag import AskConfig, Conversation, Document, SacRag
from sac_rag.answer.follow_up import refers_back, searched

PLUTO = "Who discovered Pluto?"


@pytest.mark.parametrize(
    "question",
    ["When was it found?", "And Neptune?", "What about its moon?", "Why?", "Who named THEM", "but in winter, in snow?"],
)
def test_what_refers_back(question):
    assert refers_back(question)
    assert searched(question, [PLUTO]) == f"{PLUTO} {question}"
    assert searched(question, []) == question, "there is nothing before the first"


@pytest.mark.parametrize(
    "question",
    [PLUTO, "Which moon of Saturn has geysers?", "What is IT security?".replace("IT", "network"), "", "1930?",
     "Why do rivers freeze in the winter of the north?", "Who founded the Andes company?"],
)  # fmt: skip
def test_what_stands_by_itself(question):
    assert not refers_back(question)
    assert searched(question, [PLUTO]) == question


def test_a_chain_goes_back_to_what_stands_by_itself():
    earlier = ["How large is Mars?", PLUTO, "When was it found?"]
    assert searched("And its moon?", earlier) == "Who discovered Pluto? When was it found? And its moon?"


@pytest.fixture
def rag(tiny_config, tmp_path):
    texts = {"pluto": "Tombaugh discovered Pluto. The moon is Charon.", "mars": "Mars is red. The moon is Phobos."}
    with SacRag.open(tmp_path / "lib", config=tiny_config, create=True) as made:
        made.put([Document(uri, text) for uri, text in texts.items()])
        yield made


def test_a_conversation_searches_so(rag):
    """By words alone (lexical), "its moon" finds the document of the question before."""
    ask = AskConfig(k=1, search="lexical", max_new_tokens=2)
    for name in ("Mars", "Pluto"):
        talk = Conversation()
        rag.ask(f"What is known of {name}?", ask, conversation=talk)
        rag.ask("Is it far?", ask, conversation=talk)
        (hit,) = rag.ask("What is its moon?", ask, conversation=talk).sources
        assert hit.passage.document == name.lower()
    assert talk.searched("What is red?") == "What is red?"
    talk.clear()
    assert talk.searched("What is its moon?") == "What is its moon?"
