"""Tools and structured output of ChatSac, on tiny random models: what they say is noise, its form is not."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypedDict

import pytest

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, create_retriever_tool, tool
from pydantic import BaseModel, Field

from langchain_sac import ChatSac, SacRetriever
from sac_rag import SacRag
from sac_rag.errors import ConfigError

from .helpers import QUESTION, found, ids, slots, usage


class Fact(BaseModel):
    """A fact."""

    place: str = Field(description="Where.")
    year: int
    kind: Literal["river", "bridge"]
    tags: list[str] = []


class FactDict(TypedDict):
    """A fact."""

    place: Annotated[str, ..., "Where."]
    kind: Annotated[Literal["river", "bridge"], ..., "What."]


@tool
def measure(place: str, feet: bool) -> str:
    """Measures a place."""
    return f"{place} is long"


@tool
def now() -> str:
    """Says what time it is."""
    return "nine"


@pytest.fixture
def chat(rag: SacRag) -> ChatSac:
    return ChatSac(rag=rag, max_tokens=160, temperature=0.8, seed=3)


@pytest.fixture
def search(rag: SacRag) -> BaseTool:
    return create_retriever_tool(SacRetriever(rag=rag, k=1), "search", "Searches the documents.")


def merged(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    full = chunks[0]
    for chunk in chunks[1:]:
        full = full + chunk
    return full


async def test_a_call_is_one_of_the_tools_however_it_is_made(chat: ChatSac) -> None:
    bound = chat.bind_tools([measure, now], tool_choice="any")
    one = bound.invoke(QUESTION)
    assert isinstance(one, AIMessage) and one.text == ""
    (call,) = one.tool_calls
    assert call["name"] in ("measure", "now") and call["id"] and one.response_metadata["finish_reason"] == "tool_calls"
    assert set(call["args"]) == ({"place", "feet"} if call["name"] == "measure" else set())
    chunks = list(bound.stream(QUESTION))
    assert sum(bool(c.tool_call_chunks) for c in chunks) > 2
    later = [c async for c in bound.astream(QUESTION)]
    for other in (merged(chunks), merged(later), await bound.ainvoke(QUESTION), bound.batch([QUESTION])[0]):
        (same,) = other.tool_calls
        assert (same["name"], same["args"], other.text) == (call["name"], call["args"], "")
        assert usage(other) == usage(one)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("measure", {"measure"}),
        ({"type": "function", "function": {"name": "now"}}, {"now"}),
        (True, {"measure", "now"}),
        ("required", {"measure", "now"}),
        (None, {"measure", "now"}),  # a model that was never taught to choose
        ("none", set()),
    ],
)
def test_tool_choice(chat: ChatSac, choice: Any, names: set[str]) -> None:
    said = chat.bind_tools([measure, now], tool_choice=choice).invoke("Hello!", max_tokens=100)
    assert isinstance(said, AIMessage)
    assert {c["name"] for c in said.tool_calls} <= names and bool(said.tool_calls) == bool(names)


def test_tools_of_many_kinds(chat: ChatSac) -> None:
    def divide(a: int, b: int) -> float:
        """Divides."""
        return a / b

    plain = {"name": "plain", "description": "x", "parameters": {"type": "object", "properties": {"p": {"const": 1}}}}
    for given, name in ((divide, "divide"), (Fact, "Fact"), (plain, "plain"), (FactDict, "FactDict")):
        (call,) = chat.bind_tools([given], tool_choice="any").invoke("Hello!", max_tokens=200).tool_calls
        assert call["name"] == name
    with pytest.raises(ConfigError, match="names 'seek'"):
        chat.bind_tools([measure], tool_choice="seek").invoke("Hello!")
    with pytest.raises(ConfigError, match="are allowed: raise the limit"):
        chat.bind_tools([measure], tool_choice="any").invoke("Hello!", max_tokens=8)


async def test_structured_output(chat: ChatSac) -> None:
    fact = chat.with_structured_output(Fact).invoke(QUESTION)
    assert isinstance(fact, Fact)
    assert await chat.with_structured_output(Fact).ainvoke(QUESTION) == fact
    as_dict = chat.with_structured_output(FactDict).invoke(QUESTION)
    assert set(as_dict) == {"place", "kind"} and as_dict["kind"] in ("river", "bridge")
    schema = chat.with_structured_output(Fact.model_json_schema())
    assert Fact.model_validate(schema.invoke(QUESTION)) == fact
    partial = list(schema.stream(QUESTION))
    assert len(partial) > 3 and partial[-1] == schema.invoke(QUESTION)
    called = chat.with_structured_output(Fact, method="function_calling").invoke(QUESTION)
    assert isinstance(called, Fact)

    raw = chat.with_structured_output(Fact, include_raw=True).invoke(QUESTION)
    assert raw["parsed"] == fact and raw["parsing_error"] is None and json.loads(raw["raw"].text)["kind"] == fact.kind
    loose = chat.with_structured_output(Fact, include_raw=True, method="json_mode").invoke(QUESTION)
    assert isinstance(json.loads(loose["raw"].text), dict)
    assert loose["parsed"] is None and isinstance(loose["parsing_error"], OutputParserException)
    with pytest.raises(TypeError, match="'strictly'"):
        chat.with_structured_output(Fact, strictly=True)
    with pytest.raises(ValueError, match="method is 'regex'"):
        chat.with_structured_output(Fact, method="regex")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be decoded by"):
        chat.with_structured_output({"title": "x", "type": "object", "properties": {"a": {"not": {}}}}).invoke("x")


def test_a_result_is_read_as_memory(rag: SacRag, search: BaseTool) -> None:
    """The prompt behind a retriever tool is that of a question over the same passage."""
    chat = ChatSac(rag=rag, max_tokens=12).bind_tools([search])
    (document,) = found(rag, 1)
    call = {"name": "search", "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}
    result = search.invoke({"query": QUESTION})
    assert result == document.page_content
    history: list[BaseMessage] = [
        HumanMessage(QUESTION),
        AIMessage("", tool_calls=[call]),
        ToolMessage(result, tool_call_id="1"),
    ]
    answer = chat.invoke(history)
    assert isinstance(answer, AIMessage) and not answer.tool_calls
    assert usage(answer)[1] == slots(rag, ids([document]))
    asked = rag.ask(QUESTION, k=1, max_new_tokens=12)
    assert answer.text.strip() == asked.text and usage(answer)[0] == asked.usage.attended


async def test_an_agent_calls_and_answers(rag: SacRag, chat: ChatSac, search: BaseTool) -> None:
    agent = create_agent(chat, tools=[search])
    asked = {"messages": [("user", QUESTION)]}
    _, call, result, answer = agent.invoke(asked)["messages"]
    assert call.tool_calls[0]["name"] == "search" and result.type == "tool" and not answer.tool_calls
    assert usage(answer)[1] > slots(rag, [])  # what the tool found, as memory
    assert len((await agent.ainvoke(asked))["messages"]) == 4
    streamed = [m for m, _ in agent.stream(asked, stream_mode="messages")]
    assert any(getattr(m, "tool_call_chunks", None) for m in streamed)


def test_an_agent_gives_a_structured_response(chat: ChatSac, search: BaseTool) -> None:
    said = create_agent(chat, tools=[search], response_format=Fact).invoke({"messages": [("user", QUESTION)]})
    assert isinstance(said["structured_response"], Fact)
    assert [m.type for m in said["messages"]] == ["human", "ai", "tool", "ai"]


def test_what_it_can_do_it_says() -> None:
    profile = ChatSac(library="not-there.lib").profile
    assert profile is not None and profile["tool_calling"] and profile["structured_output"]
