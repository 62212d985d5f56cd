"""ChatSac: passages where tags and blocks stand, one batch for all callers, honest accounts, clear refusals."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.utils import trim_messages
from langchain_core.prompts import ChatPromptTemplate

from langchain_sac import ChatSac, SacDocumentCompressor, SacRetriever, SacVectorStore, format_docs_sac
from langchain_sac.messages import Scope, to_sac
from sac_rag import IndexConfig, SacRag
from sac_rag.answer.prompt import Recall
from sac_rag.errors import ConfigError, LibraryNotFound

from .helpers import QUESTION, found, ids, read, slots, tags, usage


def test_a_tag_is_read_as_a_memory_and_counted_as_such(rag: SacRag, chat: ChatSac) -> None:
    (document,) = found(rag, 1)
    plain = chat.invoke(f"{document.page_content}\n{QUESTION}", recall=False)
    short = chat.invoke(f"{document.metadata['sac_tag']}\n{QUESTION}")
    ((anchors, source),) = rag.extents(ids([document]))
    everything, cached, written = usage(short)
    assert cached == slots(rag, ids([document])) and anchors < source == short.response_metadata["source_tokens"]
    assert usage(plain)[:2] == (everything - cached + source, 0)
    assert short.usage_metadata["total_tokens"] == everything + written
    assert short.content != plain.content
    known = chat.invoke(f"{document.page_content}\n{QUESTION}")  # its text, once it was handed out, is known again
    assert (known.content, usage(known)) == (short.content, usage(short))


def test_blocks_name_memories_like_tags(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag)
    one, two = ids(documents)
    tagged = chat.invoke([SystemMessage(tags(documents)[0]), HumanMessage(f"{tags(documents)[1]}\n{QUESTION}")])
    blocks = chat.invoke(
        [
            SystemMessage([{"type": "sac_kv", "id": one}]),
            HumanMessage([{"type": "sac_kv", "id": [two]}, {"type": "text", "text": f"\n{QUESTION}"}]),
        ]
    )
    assert (tagged.content, usage(tagged)) == (blocks.content, usage(blocks))
    both = chat.invoke([HumanMessage([{"type": "sac_kv", "id": [one, two]}, QUESTION])])
    assert usage(both)[1] == slots(rag, [one, two])
    wrapped = HumanMessage([{"type": "non_standard", "value": {"type": "sac_kv", "id": one}}])
    assert read(chat, [wrapped]) == [one]


def kv(passage_id: str) -> dict[str, str]:
    return {"type": "sac_kv", "id": passage_id}


def test_blocks_stand_anywhere_in_any_turn(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag, 3)
    (a, b, c), (tag_a, tag_b, tag_c) = ids(documents), tags(documents)
    blocks: list[BaseMessage] = [
        SystemMessage([kv(c), {"type": "text", "text": "Be brief."}]),
        HumanMessage([{"type": "text", "text": "First "}, kv(a), " and again ", kv(a), kv(c), "?"]),
        AIMessage("Yes."),
        HumanMessage([kv(b)]),
    ]
    text: list[BaseMessage] = [
        SystemMessage(f"{tag_c}Be brief."),
        HumanMessage(f"First {tag_a} and again {tag_a}{tag_c}?"),
        AIMessage("Yes."),
        HumanMessage(tag_b),
    ]
    assert read(chat, blocks) == [c, a, a, c, b]
    prompts = [rag.conversation(to_sac(m, Scope(rag))) for m in (blocks, text)]
    assert prompts[0].units() == prompts[1].units()
    assert [p.key[1] for p in prompts[0].parts if isinstance(p, Recall)] == [(c,), (a,), (b,)]
    one, two = chat.invoke(blocks), chat.invoke(text)
    assert (one.content, usage(one)) == (two.content, usage(two))
    assert usage(one)[1] == slots(rag, [a, b, c])


def test_blocks_survive_what_is_done_to_messages(rag: SacRag, chat: ChatSac) -> None:
    from langgraph.checkpoint.memory import MemorySaver
    from langgraph.graph import START, MessagesState, StateGraph

    one, two = ids(found(rag))
    prompt = ChatPromptTemplate.from_messages(
        [("placeholder", "{history}"), ("human", [kv("{id}"), {"type": "text", "text": "{input}"}])]
    )
    messages = prompt.format_messages(history=[HumanMessage([kv(two)]), AIMessage("Yes.")], id=one, input=QUESTION)
    assert read(chat, messages) == [two, one]
    assert read(chat, loads(dumps(messages), allowed_objects="messages")) == [two, one]
    counted = chat.get_num_tokens_from_messages(messages[2:])
    kept = trim_messages(messages, max_tokens=counted, token_counter=chat, strategy="last", start_on="human")
    assert read(chat, kept) == [one]
    graph = StateGraph(MessagesState).add_node("answer", lambda s: {"messages": [chat.invoke(s["messages"])]})
    app = graph.add_edge(START, "answer").compile(checkpointer=MemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    app.invoke({"messages": messages}, thread)
    second = app.invoke({"messages": [HumanMessage("And then?")]}, thread)["messages"][-1]
    assert read(chat, app.get_state(thread).values["messages"]) == [two, one]
    assert usage(second)[1] == slots(rag, [one, two])


@pytest.mark.parametrize(
    ("block", "names"),
    [
        ({"type": "sac_kv", "id": "0" * 32}, "0" * 32),
        ({"type": "sac_kv", "id": "nonsense"}, "nonsense"),
        ({"type": "sac_kv"}, "None"),
        ({"type": "image", "url": "https://example.org/a.png"}, "'image'"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_by_name(chat: ChatSac, block: dict[str, str], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        chat.invoke([HumanMessage([block])])


def test_scope_holds_for_tags_and_blocks_and_calls_only_narrow_it(rag: SacRag) -> None:
    documents = found(rag, 3)
    mine = next(d for d in documents if d.metadata["kind"] == "t")
    others = [d for d in documents if d.metadata["kind"] != "t"]
    chat = ChatSac(rag=rag, max_tokens=1, where={"kind": "t"})
    everything = [HumanMessage(" ".join(tags(documents)))]
    assert read(chat, everything) == ids([mine])
    for narrower in ({"where": {"kind": "c"}}, {"allowed_ids": ids(others)}):
        assert not chat.reads(tags([mine])[0], **narrower)
        assert usage(chat.invoke(everything, **narrower))[1] == 0
    assert not chat.reads(tags(others)[0], where={"kind": others[0].metadata["kind"]})
    with pytest.raises(ConfigError, match="where="):
        chat.invoke([HumanMessage([{"type": "sac_kv", "id": ids(others)[0]}])])
    chosen = ChatSac(rag=rag, allowed_ids=ids(others)[:1])
    assert read(chosen, everything) == ids(others)[:1]


def test_roles_tools_and_names(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag)
    messages: list[BaseMessage] = [
        SystemMessage("Be brief."),
        HumanMessage(QUESTION, name="ada"),
        AIMessage("", tool_calls=[{"name": "search", "args": {"query": "canal"}, "id": "1"}]),
        ToolMessage("\n\n".join(tags(documents)), tool_call_id="1", name="search"),
        ChatMessage("Go on.", role="developer"),
    ]
    assert read(chat, messages) == ids(documents)
    assert usage(chat.invoke(messages))[1] == slots(rag, ids(documents))
    with pytest.raises(ConfigError, match="'critic'"):
        chat.invoke([ChatMessage("No.", role="critic")])


async def test_invoke_stream_batch_and_async_agree(rag: SacRag, chat: ChatSac) -> None:
    prompts = [f"{tag}\n{QUESTION}" for tag in tags(found(rag, 3))]
    want = [chat.invoke(p) for p in prompts]
    texts = [m.content for m in want]
    assert [m.content for m in chat.batch(prompts)] == texts
    assert [m.content for m in await chat.abatch(prompts)] == texts
    for prompt, message in zip(prompts, want, strict=True):
        pieces = list(chat.stream(prompt))
        later = [p async for p in chat.astream(prompt)]
        for chunks in (pieces, later):
            whole = chunks[0]
            for c in chunks[1:]:
                whole += c
            assert (whole.content, usage(whole)) == (message.content, usage(message))
            assert sum(bool(c.usage_metadata and c.usage_metadata["input_tokens"]) for c in chunks) == 1
            assert whole.response_metadata["finish_reason"] == message.response_metadata["finish_reason"]


async def test_sixteen_at_once_are_answered_as_alone(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag, 3)
    prompts = [f"{tags(documents)[i % 3]}\nQuestion {i}: {QUESTION}" for i in range(16)]
    want = [m.content for m in (chat.invoke(p) for p in prompts)]
    assert [m.content for m in await asyncio.gather(*(chat.ainvoke(p) for p in prompts))] == want


async def test_a_dropped_call_leaves_the_batch(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    service = rag.engine.service
    stream = service.stream
    monkeypatch.setattr(service, "stream", lambda *a, **k: begun.append(stream(*a, **k)) or begun[-1])  # type: ignore[func-returns-value]
    chat = ChatSac(rag=rag, max_tokens=7000, temperature=2.0)
    task = asyncio.create_task(chat.ainvoke(QUESTION))
    while not (begun and begun[0].completion.token_ids):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with aclosing(chat.astream(QUESTION)) as pieces:  # type: ignore[type-var]
        async for _ in pieces:
            break
    while service._under_way:
        await asyncio.sleep(0.01)
    assert [g.completion.ended for g in begun] == [False, False]
    assert all(len(g.completion.token_ids) < 7000 for g in begun)


def test_streaming_tells_callbacks_token_by_token(rag: SacRag) -> None:
    class Heard(BaseCallbackHandler):
        pieces: list[str] = []  # noqa: RUF012

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self.pieces.append(token)

    for streaming in (False, True):
        Heard.pieces = []
        said = ChatSac(rag=rag, max_tokens=8, streaming=streaming).invoke(QUESTION, {"callbacks": [Heard()]})
        assert "".join(Heard.pieces) == (said.content if streaming else "")


def test_eight_turns_read_only_what_is_new(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, documents = ChatSac(rag=rag, max_tokens=8, history="all"), found(rag, 3)
    messages: list[BaseMessage] = [SystemMessage("Be brief.")]
    chat.invoke("Hello")  # the correctness gate reads a passage before the first answer
    before = 0
    loads: list[list[str]] = []
    load = rag.library.load
    monkeypatch.setattr(rag.library, "load", lambda i: loads.append(list(i)) or load(i))  # type: ignore[func-returns-value]
    for turn in range(8):
        tag = tags(documents)[turn // 2] + "\n" if turn % 2 == 0 and turn < 6 else ""
        messages.append(HumanMessage(f"{tag}Turn {turn}?"))
        answer = chat.invoke(messages)
        again = answer.response_metadata["reused_tokens"]
        everything, *_ = usage(answer)
        assert again >= before
        # Random bytes are no text: of the answer before, what does not come back as it was is read once more.
        answered = len(messages[-2].content.encode()) if turn else 0
        anchors = rag.extents(ids(documents))[turn // 2][0] if tag else 0
        assert everything - again <= anchors + answered + len("Turn 0?\n") + 30 or not turn
        messages.append(answer)
        before = everything
    assert sorted(i for wanted in loads for i in wanted) == sorted(ids(documents))


def test_stop_sequences_end_an_answer(rag: SacRag) -> None:
    chat = ChatSac(rag=rag, max_tokens=40)
    whole = chat.invoke(QUESTION).content
    stop = whole[len(whole) // 2 :][:2]
    want = whole[: whole.index(stop)]
    got = chat.invoke(QUESTION, stop=[stop])
    assert (got.content, got.response_metadata["finish_reason"]) == (want, "stop")
    assert "".join(c.content for c in ChatSac(rag=rag, max_tokens=40, stop=[stop]).stream(QUESTION)) == want
    assert usage(got)[2] < 40
    later = chat.invoke([HumanMessage(QUESTION), got, HumanMessage("Why?")])
    assert later.response_metadata["reused_tokens"] >= usage(got)[0]


def test_sampling_is_seeded_and_calls_override(chat: ChatSac) -> None:
    hot = chat.bind(temperature=1.5, seed=5)
    assert hot.invoke(QUESTION).content == hot.invoke(QUESTION).content
    assert hot.invoke(QUESTION).content != chat.invoke(QUESTION, temperature=1.5, seed=6).content
    assert usage(chat.invoke(QUESTION, max_tokens=3))[2] <= 3
    with pytest.raises(TypeError, match="'presence'"):
        chat.invoke(QUESTION, presence=1)
    with pytest.raises(TimeoutError, match="timeout=0"):
        chat.invoke(QUESTION, timeout=0)


async def test_what_a_model_cannot_do_it_does_not_claim(chat: ChatSac) -> None:
    with pytest.raises(TimeoutError):
        await chat.ainvoke(QUESTION, timeout=0)
    with pytest.raises(ConfigError, match="positions"):
        chat.invoke("word " * 4000)
    with pytest.raises(ValueError, match="max_token"):
        ChatSac(library="x.lib", max_token=3)  # type: ignore[call-arg]


def test_trimming_counts_a_passage_by_its_positions_and_keeps_tags(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag)
    messages = [
        HumanMessage("x" * 400),
        AIMessage("y" * 400),
        HumanMessage(f"{tags(documents)[0]}\n{tags(documents)[1]}\n{QUESTION}"),
    ]
    source = sum(n for _, n in rag.extents(ids(documents)))
    counted = chat.get_num_tokens_from_messages(messages[2:])
    assert source + len(QUESTION) < counted < source + len(QUESTION) + 20
    kept = trim_messages(messages, max_tokens=counted + 100, token_counter=chat, strategy="last", start_on="human")
    assert kept == messages[2:]
    assert read(chat, kept) == ids(documents)
    assert chat.get_token_ids("abc") == rag.engine.method.backbone.tokens("abc")


def test_nothing_is_opened_before_it_is_needed(rag: SacRag) -> None:
    chat, path = ChatSac(library="nowhere.lib"), str(rag.library.path)
    with pytest.raises(LibraryNotFound):
        chat.invoke("Hello")
    lazy, other = ChatSac(library=path, max_tokens=4), SacRetriever.from_library(path, k=1)
    assert lazy.rag is None
    (document,) = other.invoke(QUESTION)
    assert usage(lazy.invoke(tags([document])[0] + QUESTION))[1] > 0
    assert lazy.opened() is other.opened() is not rag


def test_a_model_by_folder_reads_what_is_added_later(chat_config: IndexConfig, tmp_path: Path) -> None:
    folder = str(tmp_path / "grows.lib")
    with SacVectorStore(library=folder, config=chat_config) as store:
        store.add_texts(["Ada tends the lamps."], ids=["ada"])
        chat, compressor = ChatSac(library=folder, max_tokens=1), SacDocumentCompressor(library=folder)
        reader = chat.opened()
        assert compressor.opened() is reader is not store.rag

        def added(text: str) -> Document:
            store.add_texts([text])
            return store.as_retriever(search_kwargs={"k": 1}).invoke(text)[0]

        one = added("Bert keeps bees.")
        assert format_docs_sac([one], chat) == one.metadata["sac_tag"]
        two = added("Cleo mends nets.")
        assert usage(chat.invoke(f"From {tags([two])[0]}: who?"))[1] == slots(store.rag, ids([two]))
        three = added("Dora bakes bread.")
        assert usage(chat.invoke([HumanMessage([kv(ids([three])[0])])]))[1] == slots(store.rag, ids([three]))
        four = added("Emil grinds corn.")
        counted = [HumanMessage(tags([four])[0])]
        assert chat.get_num_tokens_from_messages(counted) == ChatSac(rag=store.rag).get_num_tokens_from_messages(
            counted
        )
        five = added("Fred paints doors.")
        assert compressor.compress_documents([five], "") == [five]

        # A generation is kept while it holds all that is named: what it holds may be gone in the newest.
        store.delete([str(one.id)])
        before = reader.library.head.generation
        forged = f"[[sac:1:{'0' * 32}:{'0' * 32}]]"
        assert usage(chat.invoke(tags([one])[0] + forged))[1] == slots(reader, ids([one]))
        assert reader.library.head.generation == before
        six = added("Gina sails boats.")
        both = [HumanMessage(tags([one])[0]), AIMessage("Bees."), HumanMessage(tags([six])[0])]
        assert usage(chat.invoke(both))[1] == slots(reader, ids([six]))
        assert reader.library.head.generation == store.rag.library.head.generation


def test_a_model_is_serialised_by_its_library(chat: ChatSac, rag: SacRag) -> None:
    text = dumps(chat)
    again = loads(text, allowed_objects=[ChatSac], valid_namespaces=["langchain_sac"])
    assert isinstance(again, ChatSac) and again.library == str(rag.library.path)
    assert again.invoke(QUESTION).content == chat.invoke(QUESTION).content


def test_what_is_revived_is_for_its_reader_to_say(chat: ChatSac) -> None:
    """LangChain revives what its own list or the caller names. We are not on that list, and do not write ourselves
    into it: it would be open for a text of anybody, in all of the process."""
    from langchain_core.load.mapping import SERIALIZABLE_MAPPING
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableSequence

    text = dumps(ChatPromptTemplate.from_messages([("human", "{q}")]) | chat.model_copy(update={"max_tokens": 3}))
    for allowed in ("core", "all", "messages", [ChatPromptTemplate, RunnableSequence]):
        with pytest.raises(ValueError, match="not allowed"):
            loads(text, allowed_objects=allowed, valid_namespaces=["langchain_sac"])
    assert not [path for path in SERIALIZABLE_MAPPING.values() if path[0] == "langchain_sac"]
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")])
    named = [ChatSac, RunnableSequence, type(prompt), type(prompt.messages[0]), type(prompt.messages[0].prompt)]
    again = loads(text, allowed_objects=named, valid_namespaces=["langchain_sac"])
    assert again.invoke({"q": QUESTION}).content == chat.invoke(QUESTION, max_tokens=3).content


@pytest.mark.parametrize("fields", [{}, {"rag": "my.lib"}])
def test_a_model_without_a_library_says_what_to_give(fields: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAC_LIBRARY", raising=False)
    with pytest.raises(ValueError, match="library="):
        ChatSac(**fields)


def test_importing_is_light() -> None:
    code = "import sys, langchain_sac; print({'torch', 'transformers', 'faiss', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip(), run.returncode) == ("set()", 0), run.stderr
