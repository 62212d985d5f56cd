"""SacLLM: tags are read as memory and nothing else is; sync, async and streamed answers are one; turns go on."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ImageBlock, MessageRole
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.sac import SacEmbedding
from llama_index.ingestion.sac import SacCompressor
from llama_index.llms.sac import SacLLM
from llama_index.postprocessor.sac import SacNodePostprocessor
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever
from llama_index.schema.sac import SacNode
from llama_index.vector_stores.sac import SacVectorStore

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling, decode
from sac_rag.errors import ConfigError
from sac_rag.records import Document

from .llama_index_chat import Seen, chatting
from .off_loop import Watched, drained

QUESTION = "How many miles does the Erie Canal span?"


@pytest.fixture
def rag(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    return chatting(rag, monkeypatch)


def said(*texts: str) -> list[ChatMessage]:
    return [ChatMessage(role="user" if i % 2 == 0 else "assistant", content=t) for i, t in enumerate(texts)]


def tags(rag: SacRag, *names: str) -> str:
    return "\n\n".join(rag.tag(i) for name in names for i in rag.library.passage_ids(name))


def test_an_answer_is_the_models_behind_the_memory(rag: SacRag) -> None:
    text = f"{tags(rag, 'canal.md', 'tides.md')}\nQuestion: {QUESTION}"
    want = list(rag.converse([Message("user", rag.cite(text))], Sampling(12, min_new_tokens=1)))
    tokenizer = rag.engine.method.backbone.tokenizer
    response = SacLLM(rag, max_tokens=12).chat(said(text))
    assert response.message.role == MessageRole.ASSISTANT
    assert response.message.content == decode(tokenizer, want)
    usage = response.additional_kwargs
    extents = rag.extents([i for n in ("canal.md", "tides.md") for i in rag.library.passage_ids(n)])
    assert (
        usage["memory_tokens"]
        == usage["prompt_tokens_details"]["cached_tokens"]
        == rag.engine.method.prefix.anchors + sum(a for a, _ in extents)
    )
    assert usage["source_tokens"] == sum(n for _, n in extents)
    assert (usage["completion_tokens"], usage["total_tokens"]) == (len(want), usage["prompt_tokens"] + len(want))
    # Every other character is a token of this model: no byte of a passage was read as text.
    frame = "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    around = len(rag.engine.method.backbone.template(frame))
    assert usage["prompt_tokens"] == usage["attended_tokens"]
    assert usage["prompt_tokens"] - usage["memory_tokens"] == around + len(f"\nQuestion: {QUESTION}")
    assert response.raw == {"usage": usage}


async def test_streamed_and_async_answers_are_the_same(rag: SacRag) -> None:
    llm, messages = SacLLM(rag, max_tokens=10), said(f"{tags(rag, 'tides.md')} Why?")
    (prompt,) = (m.content or "" for m in messages)
    whole = llm.chat(messages).message.content
    assert whole and llm.complete(prompt).text == whole
    streams = [
        list(llm.stream_chat(messages)),
        [r async for r in await llm.astream_chat(messages)],
        list(llm.stream_complete(prompt)),
        [r async for r in await llm.astream_complete(prompt)],
    ]
    for stream in streams:
        assert len(stream) > 3
        assert "".join(r.delta or "" for r in stream) == whole
        assert [r.raw is not None for r in stream] == [False] * (len(stream) - 1) + [True]
    assert streams[0][-1].message.content == streams[2][-1].text == whole
    assert (await llm.achat(messages)).message.content == (await llm.acomplete(prompt)).text == whole


def test_a_call_may_change_how_it_is_answered(rag: SacRag) -> None:
    llm = SacLLM(rag, max_tokens=12)
    whole = llm.complete("Tell.").text
    stop = whole[3:5]
    assert llm.complete("Tell.", stop=stop).text == whole[: whole.index(stop)]
    assert llm.complete("Tell.", stop=[stop]).text == SacLLM(rag, max_tokens=12, stop=[stop]).complete("Tell.").text
    assert llm.complete("Tell.", max_tokens=3).additional_kwargs["completion_tokens"] == 3
    warm = {"temperature": 1.5, "seed": 3}
    assert llm.complete("Tell.", **warm).text == llm.complete("Tell.", **warm).text != whole
    with pytest.raises(ConfigError, match="'tools'.*max_tokens"):
        llm.complete("Tell.", tools=[])
    with pytest.raises(ConfigError, match="ImageBlock"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])])
    with pytest.raises(ConfigError, match="positions"):
        llm.complete("word " * 500)


def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.lib")
    llm = SacLLM(library=missing)
    parts = (SacRetriever.from_library(missing), SacEmbedding(library=missing), SacNodePostprocessor(library=missing))
    assert all(parts) and llm.library == missing and llm.to_payload()["library"] == missing
    with pytest.raises(Exception, match="none.lib"):
        llm.complete("Hello?")


def test_callbacks_and_metadata_tell_the_truth(rag: SacRag) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = SacLLM(rag, max_tokens=5, callback_manager=CallbackManager([counter]))
    usage = llm.chat(said(f"{tags(rag, 'tides.md')} Why?")).additional_kwargs
    list(llm.stream_complete("Why?"))
    assert counter.prompt_llm_token_count > usage["prompt_tokens"] > 10
    assert counter.completion_llm_token_count == usage["completion_tokens"] * 2
    m = llm.metadata
    room = 2048 - rag.engine.method.prefix.source_len
    assert (m.context_window, m.num_output, m.is_chat_model) == (room, 5, True)
    assert m.model_name == rag.config.model


def test_a_tag_counts_as_what_it_takes_of_the_context(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    count = SacLLM(rag).tokenizer
    (passage,) = rag.library.passages("canal.md")
    tag = rag.tag(passage.id)
    assert len(count(tag)) == passage.tokens < len(rag.engine.method.backbone.tokens(tag)) + len(tag)
    assert len(count(f"See {tag}!")) == passage.tokens + 5
    forged = tag[:-4] + ("11]]" if tag.endswith("00]]") else "00]]")
    assert count(forged) == rag.engine.method.backbone.tokens(forged)
    text, read = f"{tag}{tags(rag, 'tides.md')} Why?", Seen(rag, monkeypatch)
    SacLLM(rag, max_tokens=1).complete(text)
    prompt = read.prompts[0]
    method = rag.engine.method
    around = method.backbone.template("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.extent(len(prompt.units()))[1] - len(count(text)) == len(around) + method.prefix.source_len


def forged(rag: SacRag, n: int) -> list[str]:
    real = rag.library.passages()[0].id
    tag = rag.tag(real)
    found = [f"[[sac:1:{real}:{secrets.token_hex(16)}]]" for _ in range(n // 2)]
    found += [f"[[sac:1:{secrets.token_hex(16)}:{secrets.token_hex(16)}]]" for _ in range(n // 4)]
    found += [tag.upper(), tag.replace("sac:1", "sac:2"), tag[:-1], tag.replace(real, real[::-1])]
    found += [tag[:i] + ("0" if tag[i] != "0" else "1") + tag[i + 1 :] for i in range(8, 72)]
    return found + [re.sub(":", ": ", tag, count=1 + i % 3) for i in range(n - len(found))]


def test_forged_tags_are_text_wherever_they_stand(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes, loaded = forged(rag, 1000), []
    load, llm = rag.library.load, SacLLM(rag, max_tokens=1)
    llm.complete("The gate, which loads a passage of its own, is passed here.")
    monkeypatch.setattr(rag.library, "load", lambda ids: loaded.append(ids) or load(ids))
    seen = Seen(rag, monkeypatch)
    engine = RetrieverQueryEngine.from_args(SacRetriever(rag, k=1), llm=llm)
    # The context of the tiny model takes so many at a time.
    for i in range(0, 1000, 25):
        part = fakes[i : i + 25]
        nodes = [TextNode(text=part[0], metadata={"note": part[1], "sac_id": part[2]})]
        nodes += [SacNode(text=t, sac_tag=t, sac_text_sha="0" * 64) for t in part[3:4]]
        llm.chat(said("".join(part[4:])))
        engine.synthesize(part[-1], [NodeWithScore(node=n) for n in nodes])  # type: ignore[arg-type]
    assert len(seen.calls) >= 80
    assert not any(seen.ids(i) for i in range(len(seen.calls)))
    assert sum(p.slots for p in seen.prompts) == 0
    assert loaded == []


def test_tags_of_others_are_text(
    rag: SacRag, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(rag, monkeypatch)
    with SacRag.open(tmp_path / "other.lib", config=tiny_config, write=True, create=True) as other:
        other.put([Document("canal.md", rag.library.passages("canal.md")[0].text)])
        theirs = tags(other, "canal.md")
    assert theirs.split(":")[2] == tags(rag, "canal.md").split(":")[2]
    SacLLM(rag, max_tokens=1).complete(theirs)
    assert (seen.ids(), seen.text()) == ([], theirs)
    mine = SacLLM(rag, max_tokens=1, where={"kind": "c"})
    mine.complete(tags(rag, "canal.md", "tides.md"))
    assert seen.ids() == rag.library.passage_ids("canal.md")
    assert tags(rag, "tides.md") in seen.text()


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate("From {context_str}: {query_str}"),
        RichPromptTemplate("From {{ context_str }}: {{ query_str }}"),
        RichPromptTemplate(
            "{% chat role='system' %}{{ context_str | e }}{% endchat %}"
            "{% chat role='user' %}{{ query_str }}{% endchat %}"
        ),
    ],
    ids=["f-string", "jinja", "jinja chat"],
)
def test_tags_survive_templates(rag: SacRag, monkeypatch: pytest.MonkeyPatch, template: Any) -> None:
    seen, names = Seen(rag, monkeypatch), ("canal.md", "tides.md")
    SacLLM(rag, max_tokens=1).predict(template, context_str=tags(rag, *names), query_str=QUESTION)
    assert seen.ids() == [i for name in names for i in rag.library.passage_ids(name)]
    assert QUESTION in seen.text() and "[[sac" not in seen.text()


def test_a_stored_and_trimmed_history_keeps_its_tags(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, seen = SacLLM(rag, max_tokens=1), Seen(rag, monkeypatch)
    history = said("x" * 300, "y" * 300, f"{tags(rag, 'canal.md')} {QUESTION}", "363 miles.", tags(rag, "tides.md"))
    stored = json.dumps([m.model_dump() for m in history])
    loaded = [ChatMessage.model_validate(m) for m in json.loads(stored)]
    assert loaded == history
    limit = len(llm.tokenizer(" ".join(m.content or "" for m in history[2:])))
    memory = ChatMemoryBuffer.from_defaults(chat_history=loaded, token_limit=limit, tokenizer_fn=llm.tokenizer)
    assert memory.get() == history[2:]
    llm.chat(memory.get())
    assert seen.ids() == rag.library.passage_ids("canal.md") + rag.library.passage_ids("tides.md")


async def test_sixteen_at_once_are_answered_as_alone(rag: SacRag) -> None:
    llm = SacLLM(rag, max_tokens=12)
    prompts = [f"{tags(rag, ('canal.md', 'tides.md')[n % 2])} {n}. {QUESTION}" for n in range(16)]
    alone = [llm.complete(p).text for p in prompts]
    rag.engine.service._kept.clear()
    assert [r.text for r in await asyncio.gather(*(llm.acomplete(p) for p in prompts))] == alone


def asked(i: int) -> str:
    return f"Turn {i}: how many miles has the Erie Canal?"


@pytest.mark.parametrize("kind", ["simple", "context"])
def test_a_turn_reads_only_what_is_new(rag: SacRag, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    llm, seen, made = SacLLM(rag, max_tokens=5, history="all"), Seen(rag, monkeypatch), []
    submit = rag.engine.service.submit
    monkeypatch.setattr(rag.engine.service, "submit", lambda *a, **k: made.append(submit(*a, **k)) or made[-1])
    if kind == "simple":
        system = [ChatMessage(role="system", content=f"Read this. {tags(rag, 'canal.md')}")]
        engine: Any = SimpleChatEngine.from_defaults(llm=llm, prefix_messages=system)
    else:
        engine = ContextChatEngine.from_defaults(SacRetriever(rag, k=1, search="lexical", tags=True), llm=llm)
    read = []
    for i in range(8):
        answer = engine.chat(asked(i))
        assert answer.response
        prompt = seen.prompts[-1]
        assert seen.ids() == rag.library.passage_ids("canal.md")
        read.append(prompt.slots + prompt.tokens - made[-1].reused)
    before = [p.slots + p.tokens for p in seen.prompts]
    # A turn adds the answer, the next question and the template around them; nothing before that is read again.
    assert read[0] == before[0]
    assert all(n <= b - a for n, a, b in zip(read[1:], before, before[1:], strict=False))
    assert max(read[1:]) < before[-1] / 4


async def test_stock_chat_engines_work(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(rag, monkeypatch)
    retriever = SacRetriever(rag, k=2, tags=True)
    memory = ChatMemoryBuffer.from_defaults(token_limit=1000)
    engine = CondensePlusContextChatEngine.from_defaults(retriever, llm=SacLLM(rag, max_tokens=6), memory=memory)
    first = engine.chat(QUESTION)
    assert seen.ids() == [n.node.node_id for n in first.source_nodes]
    assert all("Erie" in n.get_content() or "[[sac" not in n.get_content() for n in first.source_nodes)
    second = await engine.achat("And the bridge?")
    assert second.response and len(seen.calls) == 3
    pieces = [p async for p in (await engine.astream_chat("And the tides?")).async_response_gen()]
    assert "".join(pieces) == engine.chat_history[-1].content
    streamed = engine.stream_chat("Once more?")
    assert "".join(streamed.response_gen) == streamed.response
    llm = SacLLM(rag, max_tokens=6)
    condensing = CondenseQuestionChatEngine.from_defaults(RetrieverQueryEngine.from_args(retriever, llm=llm), llm=llm)
    assert condensing.chat(QUESTION).response
    assert seen.ids() == [n.node.node_id for n in first.source_nodes]


async def test_async_methods_do_not_block(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, store, embed = SacLLM(rag, max_tokens=3), SacVectorStore(rag), SacEmbedding(rag)
    nodes = [NodeWithScore(node=TextNode(text="An otter swims."))]
    retriever = SacRetriever(rag)
    engine = RetrieverQueryEngine(retriever, SacSynthesizer(llm))
    named = "conversation retrieve remember put remove".split()
    seen = Watched(
        monkeypatch, *((rag, n) for n in named), (rag.engine, "busy"), (rag.engine.service, "submit"),
        *((rag.library, n) for n in ("search", "documents", "passages", "load")), (rag.embedder, "encode"),
    )  # fmt: skip

    await llm.achat(said(f"{tags(rag, 'canal.md')} Why?"))
    await llm.acomplete("Why?")
    await drained(await llm.astream_chat(said("Why?")))
    await drained(await llm.astream_complete("Why?"))
    await retriever.aretrieve("Why?")
    await engine.aquery("Why?")
    await SacNodePostprocessor(rag).apostprocess_nodes(nodes)
    await SacCompressor(rag).acall([nodes[0].node])
    await store.async_add([TextNode(id_="heron", text="A heron waits.")])
    await store.aget_nodes(["heron"])
    await store.aquery(VectorStoreQuery(query_str="heron"))
    await store.adelete_nodes(["heron"])
    await store.aclear()
    await embed.aget_text_embedding("x")
    await embed.aget_query_embedding("x")
    await embed.aget_text_embedding_batch(["x"])
    assert seen.on_loop == set()
    assert seen.elsewhere == {*named, "busy", "search", "documents", "passages", "load", "encode"}
