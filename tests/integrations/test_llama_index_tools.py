"""SacLLM as a function calling LLM, on a tiny random model: what it says is noise, its form is not."""

from __future__ import annotations

from typing import Any, Literal

import pytest

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool, RetrieverTool
from llama_index.llms.sac import SacLLM
from llama_index.retrievers.sac import SacRetriever

from sac_rag import SacRag
from sac_rag.errors import ConfigError

from .llama_index_chat import Seen, chatting


class Fact(BaseModel):
    """A fact."""

    place: str
    kind: Literal["river", "bridge"]


def measure(place: str, feet: bool) -> str:
    """Measures a place."""
    return f"{place!r} in {'feet' if feet else 'metres'}"


def now() -> str:
    """Says what time it is."""
    return "nine"


TOOLS = [FunctionTool.from_defaults(measure), FunctionTool.from_defaults(now)]


@pytest.fixture
def llm(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacLLM:
    return SacLLM(chatting(rag, monkeypatch), max_tokens=160, temperature=0.8, seed=5)


async def test_a_call_is_one_of_the_tools_however_it_is_made(llm: SacLLM) -> None:
    asked: dict[str, Any] = {"user_msg": "How long?", "tool_required": True}
    response = llm.chat_with_tools(TOOLS, **asked)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name in ("measure", "now") and call.tool_id and not response.message.content
    assert set(call.tool_kwargs) == ({"place", "feet"} if call.tool_name == "measure" else set())
    streamed = list(llm.stream_chat_with_tools(TOOLS, **asked))
    assert len(streamed) > 3
    later = [r async for r in await llm.astream_chat_with_tools(TOOLS, **asked)]
    for other in (streamed[-1], later[-1], await llm.achat_with_tools(TOOLS, **asked)):
        (same,) = llm.get_tool_calls_from_response(other)
        assert (same.tool_name, same.tool_kwargs) == (call.tool_name, call.tool_kwargs)
        assert other.additional_kwargs["total_tokens"] == response.additional_kwargs["total_tokens"]

    (named,) = llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, user_msg="When?", tool_choice="now"))
    assert (named.tool_name, named.tool_kwargs) == ("now", {})
    free = llm.chat_with_tools(TOOLS, user_msg="When?", tool_choice="none", max_tokens=4)
    assert llm.get_tool_calls_from_response(free, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="called no tool"):
        llm.get_tool_calls_from_response(free)


def test_predict_and_call(llm: SacLLM) -> None:
    assert llm.predict_and_call([TOOLS[1]], user_msg="When?").response == "nine"
    said = llm.predict_and_call([TOOLS[0]], user_msg="How long?").response
    assert said.endswith(("in feet", "in metres"))


async def test_structured_prediction(llm: SacLLM) -> None:
    prompt = PromptTemplate("Tell me of {what}.")
    fact = llm.structured_predict(Fact, prompt, what="bridges")
    assert isinstance(fact, Fact)
    assert await llm.astructured_predict(Fact, prompt, what="bridges") == fact
    assert isinstance(llm.as_structured_llm(Fact).complete("Tell me.").raw, Fact)
    partial = list(llm.stream_structured_predict(Fact, prompt, what="bridges"))
    assert len(partial) > 2 and isinstance(partial[-1], Fact)
    text = llm.complete("Tell me.", response_format={"type": "json_schema", "schema": Fact.model_json_schema()}).text
    assert Fact.model_validate_json(text)
    with pytest.raises(ConfigError, match="response_format"):
        llm.complete("Tell me.", response_format={"type": "grammar"})


async def test_an_agent_calls_and_answers(rag: SacRag, llm: SacLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tool found is read as memory, in front of the question."""
    seen = Seen(rag, monkeypatch)
    tool = RetrieverTool.from_defaults(SacRetriever(rag, k=1), name="search", description="Searches.")
    for streaming in (True, False):
        seen.calls.clear()
        agent = FunctionAgent(tools=[tool], llm=llm, streaming=streaming)
        output = await agent.run("How long is the Erie Canal?")
        assert [c.tool_name for c in output.tool_calls] == ["search"] and str(output)
        assert len(seen.calls) == 2 and len(seen.ids()) == 1


def test_histories_go_on(rag: SacRag, llm: SacLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(rag, monkeypatch)
    call = ToolCallBlock(tool_call_id="7", tool_name="now", tool_kwargs={})
    history = [
        ChatMessage(role=MessageRole.USER, content="When?"),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[call]),
        ChatMessage(role=MessageRole.TOOL, content="nine", additional_kwargs={"tool_call_id": "7"}),
    ]
    assert not llm.chat(history, max_tokens=4).message.additional_kwargs
    asked, called, result = seen.calls[-1]
    assert (asked.role, called.calls[0].arguments, result.role, result.name) == ("user", "{}", "tool", "now")
