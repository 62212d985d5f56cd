"""Clients as their users have them, against a live server: token for token the answers of `SacRag.ask`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sac_rag import Conversation
from tests.serve.conftest import Live

QUESTIONS = ["How long is the Erie Canal?", "Who crossed the bridge first?", "When do spring tides come?"]


@pytest.fixture
def openai(live: Live) -> Any:
    client = pytest.importorskip("openai", reason="the openai client is not installed")
    with client.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_openai_client_gets_what_ask_gives(openai: Any, live: Live, question: str) -> None:
    want = live.rag.ask(question, max_new_tokens=12)
    messages = [{"role": "user", "content": question}]
    whole = openai.chat.completions.create(model="three", messages=messages, max_tokens=12)
    assert whole.choices[0].message.content == want.text != ""
    assert whole.choices[0].finish_reason == want.finish_reason
    assert whole.usage.prompt_tokens == want.usage.attended
    assert whole.usage.completion_tokens == want.usage.completion_tokens
    assert whole.usage.prompt_tokens_details.cached_tokens == want.usage.anchors > 0
    assert [s["document"] for s in whole.sac["sources"]] == [h.passage.document for h in want.sources]
    assert whole.sac["confidence"] == pytest.approx(want.confidence, abs=1e-4)

    chunks = list(
        openai.chat.completions.create(
            model="three", messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == want.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == want.finish_reason
    assert chunks[-1].usage == whole.usage
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1


def test_a_model_may_be_named_with_its_library(openai: Any, live: Live) -> None:
    import openai as package

    messages = [{"role": "user", "content": QUESTIONS[0]}]
    want = live.rag.ask(QUESTIONS[0], max_new_tokens=6).text
    named = openai.chat.completions.create(model="tiny-base@three", messages=messages, max_tokens=6)
    assert named.choices[0].message.content == want and named.model == "tiny-base@three"
    with pytest.raises(package.NotFoundError, match="read by 'tiny-base', not 'gpt-5'"):
        openai.chat.completions.create(model="gpt-5@three", messages=messages)
    with pytest.raises(package.NotFoundError, match="no library 'gpt-5'") as caught:
        openai.chat.completions.create(model="gpt-5", messages=messages)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def test_a_conversation_is_that_of_ask(openai: Any, live: Live) -> None:
    """A client sends all of it every time; the server's prompt is that of a conversation that was kept."""
    talk = Conversation("Be brief.")
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    for question in QUESTIONS:
        want = live.rag.ask(question, conversation=talk, max_new_tokens=8)
        messages.append({"role": "user", "content": [{"type": "text", "text": question}]})
        got = openai.chat.completions.create(model="three", messages=messages, max_tokens=8)
        assert got.choices[0].message.content == want.text
        assert got.usage.prompt_tokens == want.usage.attended
        messages.append({"role": "assistant", "content": want.text})


def test_settings_of_ours_and_stop_strings(openai: Any, live: Live) -> None:
    ours = {"k": 1, "search": "lexical", "where": {"team": "sea"}}
    got = openai.chat.completions.create(
        model="three", messages=[{"role": "user", "content": "tides"}], max_tokens=8, extra_body={"sac": ours}
    )
    want = live.rag.ask("tides", k=1, search="lexical", where={"team": "sea"}, max_new_tokens=8)
    assert got.choices[0].message.content == want.text
    assert [s["document"] for s in got.sac["sources"]] == ["tides.md"]
    stop = want.text[3:5]
    short = openai.chat.completions.create(
        model="three",
        messages=[{"role": "user", "content": "tides"}],
        max_tokens=8,
        stop=stop,
        extra_body={"sac": ours},
    )
    assert short.choices[0].message.content == want.text[: want.text.index(stop)].strip()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, None, "invalid_setting"),
        ({"response_format": {"type": "grammar"}}, None, "invalid_setting"),
        ({"temperature": -1}, None, "invalid_setting"),
        ({"max_tokens": 5000}, None, "invalid_setting"),
        ({"extra_body": {"sac": {"kk": 1}}}, None, "invalid_setting"),
        ({"extra_body": {"sac": {"rerank": "owner/model"}}}, None, "invalid_setting"),
        ({"messages": []}, "messages", "no_messages"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0]", "unsupported_role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "no_question"),
        ({"messages": [{"role": "user", "content": "  "}]}, None, "invalid_setting"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
            "unsupported_content",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(openai: Any, fields: dict[str, Any], param: str, code: str) -> None:
    import openai as package

    given = {"model": "three", "messages": [{"role": "user", "content": "Who?"}], **fields}
    with pytest.raises(package.BadRequestError) as caught:
        openai.chat.completions.create(**given)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_neutral_values_change_nothing(openai: Any, live: Live) -> None:
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    got = openai.chat.completions.create(
        **{"model": "three", "messages": messages, "max_tokens": 6, "n": 1, "presence_penalty": 0, "user": "u"},
        response_format={"type": "text"},
    )
    assert got.choices[0].message.content == live.rag.ask(QUESTIONS[0], max_new_tokens=6).text


def test_responses(openai: Any, live: Live) -> None:
    want = live.rag.ask(QUESTIONS[1], max_new_tokens=10)
    whole = openai.responses.create(model="three", input=QUESTIONS[1], max_output_tokens=10)
    assert whole.output_text == want.text
    assert whole.usage.input_tokens == want.usage.attended
    assert whole.usage.input_tokens_details.cached_tokens == want.usage.anchors
    assert whole.status == ("incomplete" if want.finish_reason == "length" else "completed")
    with openai.responses.stream(model="three", input=QUESTIONS[1], max_output_tokens=10) as stream:
        pieces = [e.delta for e in stream if e.type == "response.output_text.delta"]
    assert "".join(pieces) == want.text
    import openai as package

    with pytest.raises(package.BadRequestError, match="previous_response_id"):
        openai.responses.create(model="three", input="Who?", previous_response_id="resp_1")


def test_embeddings_are_the_librarys(openai: Any, live: Live) -> None:
    import numpy as np

    texts = ["the Moon", "a rooster"]
    got = openai.embeddings.create(model="three", input=texts)  # the client asks for base64
    want = live.rag.embed(texts)
    np.testing.assert_allclose([d.embedding for d in got.data], want, atol=1e-6)
    plain = openai.embeddings.create(model="three", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, want[0], atol=1e-6)
    import openai as package

    with pytest.raises(package.BadRequestError, match="lists of token ids are not taken"):
        openai.embeddings.create(model="three", input=[[1, 2]])


def test_models_are_the_libraries(openai: Any) -> None:
    (model,) = openai.models.list().data
    assert (model.id, model.base_model) == ("three", "tiny-base")
    assert openai.models.retrieve("three") == model


async def test_langchain_chat_openai(live: Live) -> None:
    package = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    from langchain_core.messages import HumanMessage

    model = package.ChatOpenAI(model="three", base_url=f"{live.url}/v1", api_key="none", max_tokens=10, max_retries=0)
    want = [await asyncio.to_thread(live.rag.ask, q, max_new_tokens=10) for q in QUESTIONS]
    one = await model.ainvoke([HumanMessage(QUESTIONS[0])])
    assert one.content == want[0].text
    assert one.usage_metadata["input_token_details"]["cache_read"] == want[0].usage.anchors
    many = await model.abatch([[HumanMessage(q)] for q in QUESTIONS])
    assert [m.content for m in many] == [w.text for w in want]
    assert "".join([c.content async for c in model.astream(QUESTIONS[2])]) == want[2].text
    vectors = package.OpenAIEmbeddings(
        model="three", base_url=f"{live.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert len(await vectors.aembed_query("the Moon")) == live.rag.embedder.dim


def test_llama_index_openai_like(live: Live) -> None:
    package = pytest.importorskip(
        "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is not installed"
    )
    from llama_index.core.llms import ChatMessage

    model = package.OpenAILike(
        model="three", api_base=f"{live.url}/v1", api_key="none", max_tokens=10, temperature=0, is_chat_model=True
    )
    want = live.rag.ask(QUESTIONS[0], max_new_tokens=10).text
    message = ChatMessage(role="user", content=QUESTIONS[0])
    assert model.chat([message]).message.content == want
    assert "".join(r.delta or "" for r in model.stream_chat([message])) == want
