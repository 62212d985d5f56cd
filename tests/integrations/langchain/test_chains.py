"""One question through every kind of chain gives the tokens of `SacRag.ask`, read from anchors instead of text."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from langchain_sac import ChatSac, SacDocumentPrompt, SacRetriever, create_sac_chain, format_docs_sac, sac_prompt
from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.records import NO_ANSWER, Answer

from .helpers import QUESTION, found, ids, usage

TOKENS = 12


def chat_of(rag: SacRag) -> tuple[ChatSac, list[Any]]:
    """A model, and a list that its messages are added to."""
    said: list[Any] = []

    class Listening(ChatSac):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._generate(*args, **kwargs)
            said.append(result.generations[0].message)
            return result

    return Listening(rag=rag, max_tokens=TOKENS), said


@pytest.fixture(params=[1, 2, 3])
def asked(rag: SacRag, request: pytest.FixtureRequest) -> Answer:
    return rag.ask(QUESTION, k=request.param, max_new_tokens=TOKENS)


def agrees(rag: SacRag, message: Any, asked: Answer) -> None:
    """The same text, and an account that fits memories but not the passages' text."""
    assert message.content.strip() == asked.text
    everything, cached, written = usage(message)
    prefix = rag.engine.method.prefix
    assert prefix is not None
    assert cached == asked.usage.anchors
    assert cached - prefix.anchors == sum(a for a, _ in rag.extents([h.passage.id for h in asked.sources]))
    assert everything == asked.usage.anchors + asked.usage.prompt_tokens
    assert everything - prefix.anchors < asked.usage.source_tokens + asked.usage.prompt_tokens
    assert written == asked.usage.completion_tokens


def test_lcel(rag: SacRag, asked: Answer) -> None:
    chat, said = chat_of(rag)
    retriever = SacRetriever(rag=rag, k=len(asked.sources))
    chain = (
        {"context": retriever | (lambda d: format_docs_sac(d, chat)), "input": RunnablePassthrough()}
        | sac_prompt(rag)
        | chat
    )
    chain.invoke(QUESTION)
    agrees(rag, said[0], asked)
    assert chain.batch([QUESTION, QUESTION])[1].content.strip() == asked.text


@pytest.mark.parametrize("count", [1, 3])
def test_sentences_beside_memory_are_those_of_ask(rag: SacRag, count: int) -> None:
    """As a setting of the model, and of a call."""
    asked = rag.ask(QUESTION, k=2, max_new_tokens=TOKENS, evidence=count)
    plain = rag.ask(QUESTION, k=2, max_new_tokens=TOKENS)
    assert asked.usage.prompt_tokens > plain.usage.prompt_tokens
    for chat, call in (
        (ChatSac(rag=rag, max_tokens=TOKENS, evidence=count), {}),
        (chat_of(rag)[0], {"evidence": count}),
    ):
        stuff = create_stuff_documents_chain(chat, sac_prompt(rag), document_prompt=SacDocumentPrompt(llm=chat))
        messages = sac_prompt(rag).invoke(
            {"context": format_docs_sac(SacRetriever(rag=rag, k=2).invoke(QUESTION), chat), "input": QUESTION}
        )
        agrees(rag, chat.invoke(messages, **call), asked)
        if not call:
            assert (
                create_retrieval_chain(SacRetriever(rag=rag, k=2), stuff).invoke({"input": QUESTION})["answer"].strip()
                == asked.text
            )


async def test_stock_retrieval_chain(rag: SacRag, asked: Answer) -> None:
    chat, said = chat_of(rag)
    stuff = create_stuff_documents_chain(chat, sac_prompt(rag), document_prompt=SacDocumentPrompt(llm=chat))
    chain = create_retrieval_chain(SacRetriever(rag=rag, k=len(asked.sources)), stuff)
    out = chain.invoke({"input": QUESTION})
    agrees(rag, said[0], asked)
    assert [d.page_content for d in out["context"]] == [h.passage.text for h in asked.sources]
    assert (await chain.ainvoke({"input": QUESTION}))["answer"] == out["answer"]
    assert "".join(p.get("answer", "") for p in chain.stream({"input": QUESTION})) == out["answer"]
    assert "".join([p.get("answer", "") async for p in chain.astream({"input": QUESTION})]) == out["answer"]


def test_langgraph_node(rag: SacRag, asked: Answer) -> None:
    from langgraph.graph import START, StateGraph

    class State(TypedDict, total=False):
        question: str
        documents: list[Document]
        answer: Any

    chat, _ = chat_of(rag)
    retriever, prompt = SacRetriever(rag=rag, k=len(asked.sources)), sac_prompt(chat)

    def retrieve(state: State) -> State:
        return {"documents": retriever.invoke(state["question"])}

    def answer(state: State) -> State:
        context = format_docs_sac(state["documents"], chat)
        return {"answer": chat.invoke(prompt.invoke({"context": context, "input": state["question"]}))}

    graph = StateGraph(State).add_sequence([retrieve, answer]).add_edge(START, "retrieve").compile()
    agrees(rag, graph.invoke({"question": QUESTION})["answer"], asked)


async def test_sac_chain(rag: SacRag, asked: Answer) -> None:
    k = len(asked.sources)
    chat, said = chat_of(rag)
    chain = create_sac_chain(rag, k=k, llm=chat)
    out = chain.invoke({"question": f" {QUESTION}\n"})
    agrees(rag, said[0], asked)
    assert set(out) == {"question", "input", "context", "answer"}
    chain = create_sac_chain(str(rag.library.path), k=k, max_tokens=TOKENS)
    assert chain.invoke(QUESTION)["answer"] == out["answer"]
    assert (await chain.ainvoke({"input": QUESTION}))["answer"] == out["answer"]
    assert [d.id for d in out["context"]] == [h.passage.id for h in asked.sources]
    assert "".join(p.get("answer", "") for p in chain.stream(QUESTION)) == out["answer"]
    assert "".join([p.get("answer", "") async for p in chain.astream(QUESTION)]) == out["answer"]
    assert [o["answer"] for o in chain.batch([QUESTION] * 3)] == [out["answer"]] * 3


def test_sac_chain_with_history_filters_and_foreign_retrievers(rag: SacRag) -> None:
    chat, said = chat_of(rag)
    history = [HumanMessage("Hello"), AIMessage("Hello.")]
    bare = create_sac_chain(rag, llm=chat).invoke(QUESTION)
    create_sac_chain(rag, llm=chat.bind(history="all")).invoke({"input": QUESTION, "chat_history": history})
    assert usage(said[1])[0] > usage(said[0])[0]
    only = create_sac_chain(rag, k=3, where={"kind": "t"}, max_tokens=4).invoke(QUESTION)
    assert [d.metadata["document"] for d in only["context"]] == ["tides.md"]
    text = bare["context"][0].page_content
    foreign = RunnableLambda(lambda _: [Document(page_content=text)])
    out = create_sac_chain(rag, retriever=foreign, llm=chat).invoke(QUESTION)
    assert out["answer"] == bare["answer"]  # the memory of a text does not depend on who found it
    assert usage(said[2]) == usage(said[0])
    create_sac_chain(rag, retriever=foreign, llm=chat, remember=False).invoke(QUESTION)
    assert usage(said[3])[1] == 0
    create_sac_chain(rag, llm=chat).invoke({"input": QUESTION, "chat_history": history})
    assert usage(said[4]) == usage(said[0])  # the question stands by itself


async def test_small_talk_is_answered_without_documents(rag: SacRag) -> None:
    chat, said = chat_of(rag)
    chain = create_sac_chain(rag, llm=chat)
    for out in (chain.invoke("Thanks!"), await chain.ainvoke("Thanks!")):
        assert out["context"] == [] and out["answer"] == said[-1].content != NO_ANSWER
        assert usage(said[-1])[1] == 0 and "nothing was asked" in said[-1].response_metadata["notices"][0]
    plain = chat.invoke("Thanks!")
    assert (usage(plain), plain.content) == (usage(said[0]), said[0].content)
    for asked in (create_sac_chain(rag, llm=chat.bind(small_talk=False)), create_sac_chain(rag, small_talk=False)):
        assert asked.invoke("Thanks!")["context"]
    assert usage(said[-1])[1] > 0 and "notices" not in said[-1].response_metadata


async def test_without_documents_the_model_is_not_asked(rag: SacRag) -> None:
    chat, said = chat_of(rag)
    for where in ({"kind": "nothing"}, {"$and": [{"kind": "c"}, {"kind": "t"}]}, {"kind": {"$gt": "z"}}):
        chain = create_sac_chain(rag, retriever=SacRetriever(rag=rag, where=where), llm=chat)
        assert chain.invoke(QUESTION)["answer"] == (await chain.ainvoke(QUESTION))["answer"] == NO_ANSWER
        assert "".join(p.get("answer", "") for p in chain.stream(QUESTION)) == NO_ANSWER
    assert said == []
    alone = create_sac_chain(rag, retriever=SacRetriever(rag=rag, where=where), llm=chat, closed_book=True)
    assert alone.invoke(QUESTION)["answer"] and len(said) == 1


def test_chains_say_what_is_missing(rag: SacRag) -> None:
    chain = create_sac_chain(rag)
    with pytest.raises(ConfigError, match="'query'"):
        chain.invoke({"query": QUESTION})
    with pytest.raises(ConfigError, match="no question"):
        chain.invoke("  ")
    with pytest.raises(ConfigError, match="max_tokens"):
        create_sac_chain(rag, llm=ChatSac(rag=rag), max_tokens=3)
    for setting in ({"k": 3}, {"search_type": "mmr"}):
        with pytest.raises(ConfigError, match=f"retriever.*{next(iter(setting))}"):
            create_sac_chain(rag, retriever=SacRetriever(rag=rag), **setting)
    with pytest.raises(ConfigError, match="FakeListChatModel"):
        create_sac_chain(rag, llm=FakeListChatModel(responses=[]))


def test_sac_chain_takes_a_model_with_settings(rag: SacRag) -> None:
    chat, want = ChatSac(rag=rag, max_tokens=TOKENS), create_sac_chain(rag, max_tokens=3).invoke(QUESTION)["answer"]
    for llm in (chat.bind(max_tokens=3), chat.with_config(tags=["a"]).bind(max_tokens=3).with_retry()):
        assert create_sac_chain(llm, llm=llm).invoke(QUESTION)["answer"] == want
        assert sac_prompt(llm) == sac_prompt(chat)
    foreign, mine = RunnableLambda(lambda _: [Document("The code is 4711.")]), chat.bind(where={"tenant": ["a", "b"]})
    (held,) = create_sac_chain(rag, retriever=foreign, llm=mine).invoke(QUESTION)["context"]
    assert chat.reads(held.metadata["sac_tag"], where={"tenant": "a"})


def test_the_prompt_is_the_adapters_own_layout(rag: SacRag) -> None:
    layout = rag.engine.method.layout
    messages = sac_prompt(rag).format_messages(context="C", input="{braces} stay")
    assert [m.type for m in messages] == ["system", "human"]
    rendered = rag.engine.method.backbone.tokenizer.apply_chat_template(
        [{"role": r, "content": m.content} for r, m in zip(("system", "user"), messages, strict=True)],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == f"{layout.prefix}C{layout.before}{{braces}} stay{layout.after}"
    assert ids(found(rag, 1))
