"""Follow-up questions are searched for together with what they refer to; others by their own words alone."""

from __future__ import annotations

import pytest

from sac_rag import AskConfig, Conversation, Document, SacRag, samples
from sac_rag.answer.follow_up import lines_of, refers_back, searched, thread

PLUTO = "Who discovered Pluto?"


@pytest.mark.parametrize(
    "question",
    ["When was it found?", "And Neptune?", "What about its moon?", "Why?", "Who named THEM", "but in winter, in snow?",
     "Who said that?", "That moon, how large?", "What is that condition called?", "Which one is larger?",
     "Who lives there?", "What happened then?", "The larger one?"],
)  # fmt: skip
def test_what_refers_back(question):
    assert refers_back(question)
    assert searched(question, [PLUTO]) == f"{PLUTO} {question}"
    assert searched(question, []) == question, "there is nothing before the first"


@pytest.mark.parametrize(
    "question",
    [PLUTO, "Which moon of Saturn has geysers?", "What is IT security?".replace("IT", "network"), "", "1930?",
     "Why do rivers freeze in the winter of the north?", "Who founded the Andes company?",
     "Which hypothesis states that the Moon separated from Earth?", "Who noticed in 1819 that a needle moved?",
     "Which error is raised when one of the arguments ends?", "How many moons are there?", "Is there a moon of Venus?",
     "Is it true that Pluto is a planet?", "What is the theory of everything?"],
)  # fmt: skip
def test_what_stands_by_itself(question):
    assert not refers_back(question)
    assert searched(question, [PLUTO]) == question


@pytest.mark.parametrize("question", [*(q.question for q in samples.questions())])
def test_sample_questions_stand_by_themselves(question):
    assert not refers_back(question) and thread([PLUTO], question) == 0


def test_how_far_a_question_goes_back():
    earlier = ["How large is Mars?", PLUTO, "When was it found?"]
    assert [thread(earlier, q) for q in ("Who built the canal?", "And its moon?", "What did I ask first?")] == [0, 2, 3]
    assert [thread(earlier[:n], "Why?") for n in range(4)] == [0, 1, 1, 2]
    assert thread(["Why?", "And its moon?"], "Where is that?") == 2, "nothing stood by itself"
    for question in ("What did I ask first?", "What is my name?", "Am I right?"):
        assert thread(earlier, question) == 3 and searched(question, earlier) == question


def test_a_message_is_looked_at_line_by_line():
    stock = "Context information is below.\n-----\n\nGiven the context, answer the query.\nQuery: Who is he?\nAnswer: "
    assert lines_of(stock) == ["Context information is below.", "Given the context, answer the query.", "Who is he?"]
    assert refers_back(stock) and not refers_back(stock.replace("he", "Huygens"))
    assert refers_back("Question: Why?") and lines_of("Answer:") == lines_of(" -- \n") == []


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
