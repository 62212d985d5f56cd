"""Tools and structured output over HTTP, by clients as their users have them, against a live server."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

import httpx
from pydantic import BaseModel

from tests.answer.test_chat import TEMPLATE
from tests.serve.conftest import TEXTS, Live

QUESTION = "How long is the Erie Canal?"


class Fact(BaseModel):
    """A fact."""

    place: str
    kind: Literal["river", "bridge"]


FORM = {"type": "json_schema", "json_schema": {"name": "fact", "schema": Fact.model_json_schema(), "strict": True}}
PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 20}, "feet": {"type": "boolean"}},
    "required": ["place", "feet"],
}
FUNCTION = {"name": "measure", "description": "Measures a place.", "parameters": PARAMETERS}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "now"}}]
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
LONG = {"max_tokens": 160, "temperature": 0.8, "seed": 5}


@pytest.fixture
def openai(live: Live) -> Any:
    client = pytest.importorskip("openai", reason="the openai client is not installed")
    with client.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def create(openai: Any, **fields: Any) -> Any:
    return openai.chat.completions.create(**{"model": "three", "messages": ASKED, **LONG, **fields})


def test_an_answer_of_the_library_fits_a_schema(openai: Any, live: Live) -> None:
    want = live.rag.ask(QUESTION, schema=Fact.model_json_schema(), max_new_tokens=160, temperature=0.8, seed=5)
    whole = create(openai, response_format=FORM)
    assert Fact.model_validate_json(whole.choices[0].message.content) and whole.choices[0].message.refusal is None
    assert whole.choices[0].message.content == want.text
    assert [s["document"] for s in whole.sac["sources"]] == [h.passage.document for h in want.sources]
    chunks = [c.choices[0] for c in create(openai, response_format=FORM, stream=True)]
    assert "".join(c.delta.content or "" for c in chunks) == want.text
    parsed = openai.chat.completions.parse(
        model="three", messages=ASKED, max_tokens=160, temperature=0.8, seed=5, response_format=Fact
    )
    assert parsed.choices[0].message.parsed == Fact.model_validate_json(want.text)
    loose = create(openai, response_format={"type": "json_object"}, max_tokens=30)
    assert isinstance(json.loads(loose.choices[0].message.content), dict)


def test_the_librarys_own_route_takes_a_schema(live: Live) -> None:
    settings = {"max_new_tokens": 160, "temperature": 0.8, "seed": 5}
    body = {"question": QUESTION, "schema": Fact.model_json_schema(), "settings": settings}
    want = live.rag.ask(QUESTION, schema=Fact.model_json_schema(), **settings)
    answer = httpx.post(f"{live.url}/v1/libraries/three/ask", json=body)
    assert answer.status_code == 200 and answer.json()["answer"] == want.text
    assert Fact.model_validate_json(want.text)
    for wrong, why in (({"type": "x"}, "Invalid type: x"), ("fact", "schema")):
        refused = httpx.post(f"{live.url}/v1/libraries/three/ask", json={**body, "schema": wrong})
        assert refused.status_code in (400, 422) and why in refused.text


def test_without_passages_it_refuses(openai: Any) -> None:
    """No JSON is made up: the model was not asked."""
    nothing = {"response_format": FORM, "extra_body": {"sac": {"where": {"team": "air"}}}}
    message = create(openai, **nothing).choices[0].message
    assert (message.content, message.refusal) == (None, "The passages do not say.")
    deltas = [c.choices[0].delta for c in create(openai, stream=True, **nothing)]
    assert [getattr(d, "refusal", None) for d in deltas if getattr(d, "refusal", None)] == [message.refusal]
    assert not any(d.content for d in deltas)


def test_calls_of_tools(openai: Any) -> None:
    whole = create(openai, tools=TOOLS, tool_choice="required").choices[0]
    (call,) = whole.message.tool_calls
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    assert call.id and call.function.name in ("measure", "now") and json.loads(call.function.arguments) is not None
    chunks = list(create(openai, tools=TOOLS, tool_choice="required", stream=True))
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    assert [d.function.name for d in deltas if d.function.name] == [call.function.name] and deltas[0].id
    assert "".join(d.function.arguments for d in deltas) == call.function.arguments and len(deltas) > 1
    assert chunks[-1].choices[0].finish_reason == "tool_calls"

    named = {"type": "function", "function": {"name": "now"}}
    (call,) = create(openai, tools=TOOLS, tool_choice=named).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("now", "{}")
    (call,) = create(openai, tools=TOOLS).choices[0].message.tool_calls  # a model that was never taught to choose
    assert call.function.name in ("measure", "now")
    plain = create(openai, max_tokens=6)
    assert create(openai, tools=TOOLS, tool_choice="none", max_tokens=6).choices[0].message == plain.choices[0].message


def test_results_are_read_and_answered(openai: Any, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passage that a tool gave is the memory of it, in front of the question: the prompt of `ask`."""
    monkeypatch.setattr(live.rag.engine.method.backbone.tokenizer, "chat_template", TEMPLATE)
    with live.client() as client:
        search = {"query": QUESTION, "k": 1}
        (hit,) = client.post("/v1/libraries/three/search", json=search).json()["passages"]
    (call,) = create(openai, tools=TOOLS, tool_choice="required").choices[0].message.tool_calls
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": hit["text"]},
    ]
    said = create(openai, messages=messages, tools=TOOLS, max_tokens=8, temperature=0)
    want = live.rag.ask(QUESTION, k=1, max_new_tokens=8)
    assert said.choices[0].message.content == want.text and said.choices[0].message.tool_calls is None
    assert said.usage.prompt_tokens_details.cached_tokens == want.usage.anchors > 0
    assert said.usage.prompt_tokens == want.usage.attended


def test_responses_with_tools_and_schemas(openai: Any, live: Live) -> None:
    common: dict[str, Any] = {"model": "three", "input": QUESTION, "max_output_tokens": 160, "temperature": 0.8}
    whole = openai.responses.create(**common, tools=FLAT, tool_choice="required")
    (call,) = whole.output
    assert call.type == "function_call" and call.name in ("measure", "now") and whole.status == "completed"
    with openai.responses.stream(**common, tools=FLAT, tool_choice={"type": "function", "name": "measure"}) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    (call,) = final.output
    assert "".join(deltas) == call.arguments and set(json.loads(call.arguments)) == {"place", "feet"}
    later = openai.responses.create(
        model="three",
        input=[
            {"role": "user", "content": QUESTION},
            {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments},
            {"type": "function_call_output", "call_id": call.call_id, "output": TEXTS["canal.md"]},
        ],
        tools=FLAT,
        max_output_tokens=6,
    )
    assert later.output_text and [o.type for o in later.output] == ["message"]
    form = {"format": {"type": "json_schema", "name": "fact", "schema": Fact.model_json_schema()}}
    assert Fact.model_validate_json(openai.responses.create(**common, text=form).output_text)
    with openai.responses.stream(**common, text=form) as stream:
        assert Fact.model_validate_json("".join(e.delta for e in stream if e.type == "response.output_text.delta"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "no tool of type function"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "none of the tools"),
        ({"tool_choice": "required", "tools": TOOLS, "max_tokens": 5}, "raise the limit"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "called 'a b'"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "Invalid type: x"),
        ({"response_format": FORM, "extra_body": {"sac": {"abstain": True}}}, "leave them out beside a schema"),
        ({"tools": TOOLS, "extra_body": {"sac": {"k": 3}}}, "sac.k is about a search"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]}, "not one of a function"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}], "tools": TOOLS}, "the last message must be"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_had_is_refused_before_an_answer(
    openai: Any, fields: dict[str, Any], message: str, stream: bool
) -> None:
    import openai as package

    with pytest.raises(package.BadRequestError, match=message):
        create(openai, stream=stream, **fields)


def test_schemas_out_of_hand_are_refused(live: Live) -> None:
    """Too deep even for a parser in Python, or too large: an error of the request, and the server goes on."""
    deep = '{"items": ' * 300 + "{}" + "}" * 300
    with live.client() as client:
        for schema in (deep, json.dumps({"enum": ["x" * 70_000]})):
            form = '{"type": "json_schema", "json_schema": {"schema": ' + schema + "}}"
            body = '{"model": "three", "messages": ' + json.dumps(ASKED) + ', "response_format": ' + form + "}"
            said = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
            assert said.status_code == 400, said.text
        assert client.get("/v1/models").status_code == 200


async def test_langchain_chat_openai(live: Live) -> None:
    package = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    @tool
    def measure(place: str, feet: bool) -> str:
        """Measures a place."""
        return "363 miles"

    given = {"base_url": f"{live.url}/v1", "api_key": "none", "max_retries": 0, **LONG}
    model = package.ChatOpenAI(model="three", **given)
    (call,) = (await model.bind_tools([measure], tool_choice="any").ainvoke(QUESTION)).tool_calls
    assert set(call["args"]) == {"place", "feet"}
    full = None
    async for chunk in model.bind_tools([measure], tool_choice="any").astream(QUESTION):
        full = chunk if full is None else full + chunk
    assert full is not None and full.tool_calls[0]["args"] == call["args"]
    assert isinstance(await model.with_structured_output(Fact).ainvoke(QUESTION), Fact)
    said = await create_agent(model, tools=[measure]).ainvoke({"messages": [("user", QUESTION)]})
    assert [m.type for m in said["messages"]] == ["human", "ai", "tool", "ai"]


async def test_llama_index_openai_like(live: Live) -> None:
    package = pytest.importorskip("llama_index.llms.openai_like", reason="llama-index-llms-openai-like is missing")
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.prompts import PromptTemplate
    from llama_index.core.tools import FunctionTool

    def measure(place: str, feet: bool) -> str:
        """Measures a place."""
        return "363 miles"

    model = package.OpenAILike(
        model="three",
        api_base=f"{live.url}/v1",
        api_key="none",
        max_tokens=160,
        temperature=0,
        is_chat_model=True,
        is_function_calling_model=True,
    )
    tools = [FunctionTool.from_defaults(measure)]
    (call,) = model.get_tool_calls_from_response(model.chat_with_tools(tools, user_msg=QUESTION, tool_required=True))
    assert set(call.tool_kwargs) == {"place", "feet"}
    assert isinstance(model.structured_predict(Fact, PromptTemplate("Tell me.")), Fact)
    output = await FunctionAgent(tools=tools, llm=model).run(QUESTION)
    assert [c.tool_name for c in output.tool_calls] == ["measure"] and str(output)
