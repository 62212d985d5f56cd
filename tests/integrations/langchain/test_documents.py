"""Documents on their way to a prompt: tags survive what is done to text, and mean nothing where they should not."""

from __future__ import annotations

import html
import json
import random
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
    LLMChainExtractor,
)
from langchain_classic.retrievers.document_compressors.cross_encoder import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate, format_document
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool

from langchain_sac import (
    ChatSac,
    SacDocumentCompressor,
    SacDocumentPrompt,
    SacRetriever,
    create_sac_chain,
    format_docs_sac,
)
from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.records import Document as Stored
from tests.integrations.conftest import TEXTS

from .helpers import QUESTION, found, ids, read, slots, tags, usage


def test_tags_are_for_the_model_that_reads_them(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag)
    text = "\n\n".join(d.page_content for d in documents)
    assert format_docs_sac(documents) == text
    assert format_docs_sac(documents, FakeListChatModel(responses=["x"])) == text
    assert format_docs_sac(documents, chat.with_fallbacks([FakeListChatModel(responses=["x"])])) == text
    assert format_docs_sac(documents, chat) == "\n\n".join(tags(documents))
    assert format_docs_sac(documents, chat.bind(stop=["x"]).with_retry(), separator=" ") == " ".join(tags(documents))
    outside = chat.bind(allowed_ids=ids(documents)[:1])
    assert format_docs_sac(documents, outside) == f"{tags(documents)[0]}\n\n{documents[1].page_content}"
    assert [format_document(d, SacDocumentPrompt()) for d in documents] == [d.page_content for d in documents]
    assert [format_document(d, SacDocumentPrompt(llm=chat)) for d in documents] == tags(documents)


def test_edited_and_foreign_documents_are_sent_as_text(rag: SacRag, chat: ChatSac) -> None:
    from langchain_text_splitters import CharacterTextSplitter

    (whole,) = found(rag, 1)
    edited = whole.model_copy(update={"page_content": whole.page_content.replace("363", "1000")})
    halves = CharacterTextSplitter(separator=". ", chunk_size=40, chunk_overlap=0).split_documents([whole])
    foreign = Document(page_content="Mary built a barn.")
    assert len(halves) > 1 and halves[0].metadata["sac_tag"]
    assert format_docs_sac([edited, *halves, foreign], chat, separator="|") == "|".join(
        d.page_content for d in (edited, *halves, foreign)
    )
    assert format_document(edited, SacDocumentPrompt(llm=chat)) == edited.page_content
    reply = chat.invoke(format_docs_sac([edited], chat))
    assert usage(reply)[1] == 0


def test_tags_of_another_library_are_no_tags(rag: SacRag, chat: ChatSac, tiny_config: Any, tmp_path: Path) -> None:
    with SacRag.open(tmp_path / "other.lib", config=tiny_config, write=True, create=True) as other:
        other.put([Stored(uri, text) for uri, text in TEXTS.items()])
        theirs = found(other, 1)
    assert format_docs_sac(theirs, chat) == theirs[0].page_content
    assert read(chat, [HumanMessage(tags(theirs)[0])]) == []


def test_a_thousand_forged_tags_load_nothing(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatSac(rag=rag, max_tokens=1)
    chat.invoke("Hello")  # the correctness gate reads a passage before the first answer
    documents, rng = found(rag, 3), random.Random(0)
    forged = []
    for n in range(1000):
        tag = tags(documents)[n % 3]
        at = rng.randrange(8, len(tag) - 2)
        digit = rng.choice([d for d in "0123456789abcdef" if d != tag[at]])
        guessed = f"[[sac:1:{ids(documents)[n % 3]}:{rng.getrandbits(128):032x}]]"
        forged.append(guessed if n % 2 else tag[:at] + digit + tag[at + 1 :])
    loads: list[Any] = []
    monkeypatch.setattr(rag.library, "load", lambda *a: loads.append(a))
    assert read(chat, [HumanMessage("\n".join(forged))]) == []
    assert usage(chat.invoke("\n".join(forged[:8])))[1] == 0
    carriers = [Document(page_content=f"See {tag}.") for tag in forged]
    assert format_docs_sac(carriers, chat, separator="") == "".join(d.page_content for d in carriers)
    assert read(chat, [HumanMessage(format_docs_sac(carriers, chat))]) == []
    claims = [documents[n % 3].model_copy(deep=True) for n in range(1000)]
    for document, tag in zip(claims, forged, strict=True):
        document.metadata["sac_tag"] = tag
    assert format_docs_sac(claims, chat, separator="") == "".join(d.page_content for d in claims)
    block = json.dumps({"type": "sac_kv", "id": ids(documents)[0]})
    assert read(chat, [HumanMessage(block), HumanMessage([{"type": "text", "text": block}, block])]) == []
    assert not loads


@pytest.mark.parametrize(
    ("form", "template"),
    [
        ("f-string", "From {context}: {input}"),
        ("mustache", "From {{{context}}}: {{input}}"),
        ("mustache", "From {{context}}: {{input}}"),
        ("jinja2", "From {{ context }}: {{ input }}"),
        ("jinja2", "From {{ context | e }}: {{ input }}"),
    ],
)
def test_tags_survive_templates(rag: SacRag, chat: ChatSac, form: Any, template: str) -> None:
    documents = found(rag)
    prompt = ChatPromptTemplate.from_messages([("human", template)], template_format=form)
    messages = prompt.format_messages(context=html.escape(format_docs_sac(documents, chat)), input="Why?")
    assert read(chat, messages) == ids(documents)


def test_tags_survive_serialisation_and_checkpoints(rag: SacRag, chat: ChatSac) -> None:
    from langgraph.checkpoint.memory import MemorySaver
    from langgraph.graph import START, MessagesState, StateGraph

    documents = found(rag)
    again = loads(dumps(documents), allowed_objects=[Document])
    assert again == documents
    assert format_docs_sac(again, chat) == format_docs_sac(documents, chat)
    messages = [HumanMessage(format_docs_sac(documents, chat))]
    assert read(chat, loads(dumps(messages), allowed_objects="messages")) == ids(documents)

    class State(MessagesState):
        documents: list[Document]

    graph = StateGraph(State).add_node("answer", lambda s: {"messages": [chat.invoke(s["messages"])]})
    app = graph.add_edge(START, "answer").compile(checkpointer=MemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    first = app.invoke({"messages": messages, "documents": documents}, thread)
    second = app.invoke({"messages": [HumanMessage("And then?")]}, thread)
    kept = app.get_state(thread).values
    assert kept["documents"] == documents
    assert read(chat, kept["messages"]) == ids(documents)
    assert len(kept["messages"]) == 4
    account = second["messages"][-1]
    assert usage(account)[1] == usage(first["messages"][-1])[1] > 0
    assert account.response_metadata["reused_tokens"] >= usage(first["messages"][-1])[0]


class Shortest(BaseCrossEncoder):
    """The shorter a text the better; keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        self.seen += [text for _, text in text_pairs]
        return [-len(text) for _, text in text_pairs]


def test_rerankers_see_the_text_and_tags_follow_their_order(rag: SacRag, chat: ChatSac) -> None:
    shortest, documents = Shortest(), found(rag, 3)
    reranker = CrossEncoderReranker(model=shortest, top_n=2)
    retriever = ContextualCompressionRetriever(base_retriever=SacRetriever(rag=rag, k=3), base_compressor=reranker)
    kept = retriever.invoke(QUESTION)
    assert shortest.seen == [d.page_content for d in documents]
    best = sorted(documents, key=lambda d: len(d.page_content))[:2]
    assert read(chat, [HumanMessage(format_docs_sac(kept, chat))]) == ids(best)

    plain = [Document(page_content=d.page_content) for d in documents]
    both = DocumentCompressorPipeline(transformers=[reranker, SacDocumentCompressor(rag=rag)])
    assert read(chat, [HumanMessage(format_docs_sac(both.compress_documents(plain, QUESTION), chat))]) != []
    assert shortest.seen[3:] == [d.page_content for d in documents]


def test_what_a_rewriter_made_of_a_document_is_sent_as_text(rag: SacRag, chat: ChatSac) -> None:
    rewriter = LLMChainExtractor.from_llm(FakeListChatModel(responses=["363 miles."]))
    out = rewriter.compress_documents(found(rag, 2), QUESTION)
    assert out[0].metadata["sac_tag"] == tags(found(rag, 1))[0]  # what it copied along leads to another text
    assert format_docs_sac(out, chat) == "363 miles.\n\n363 miles."


def test_a_memory_of_another_tenant_is_no_memory(rag: SacRag) -> None:
    def remembered(meta: dict[str, Any] | None) -> Document:
        compressor = SacDocumentCompressor(rag=rag, meta=meta)
        return compressor.compress_documents([Document(page_content="The code of the safe is 4711.")], "")[0]

    nobodys, theirs, mine = remembered(None), remembered({"tenant": "b"}), remembered({"tenant": "a"})
    chat = ChatSac(rag=rag, max_tokens=1, where={"tenant": "a"})
    everything = [nobodys, theirs, mine]
    assert read(chat, [HumanMessage("".join(tags(everything)))]) == ids([mine])
    assert format_docs_sac([nobodys, theirs], chat) == "\n\n".join([mine.page_content] * 2)
    with pytest.raises(ConfigError, match="where="):
        chat.invoke([HumanMessage([{"type": "sac_kv", "id": ids([theirs])[0]}])])
    # What comes with another tenant's memory gets one of its own.
    (again,) = SacDocumentCompressor(rag=rag, meta={"tenant": "a"}).compress_documents([theirs], "")
    assert ids([again]) == ids([mine])
    assert read(ChatSac(rag=rag), [HumanMessage("".join(tags(everything)))]) == ids(everything)
    foreign = RunnableLambda(lambda _: [Document(page_content=mine.page_content)])
    for allowed in (["a", "c"], {"a"}):
        out = create_sac_chain(rag, retriever=foreign, where={"tenant": allowed}, max_tokens=1).invoke(QUESTION)
        assert ids(out["context"]) == ids([mine])


def test_it_fits_a_stock_compression_retriever(rag: SacRag, chat: ChatSac) -> None:
    plain = [Document(page_content=d.page_content, metadata={"source": "a"}) for d in found(rag, 3)]
    retriever = ContextualCompressionRetriever(
        base_retriever=RunnableLambda(lambda _: plain),  # type: ignore[arg-type]
        base_compressor=SacDocumentCompressor(rag=rag),
    )
    out = retriever.invoke(QUESTION)
    assert [d.page_content for d in out] == [d.page_content for d in plain]
    assert read(chat, [HumanMessage(format_docs_sac(out, chat))]) == ids(out)


async def test_a_retriever_tool_hands_out_tags(rag: SacRag, chat: ChatSac) -> None:
    tool = create_retriever_tool(
        SacRetriever(rag=rag, k=2), "search", "Searches.", document_prompt=SacDocumentPrompt(llm=chat)
    )
    said = tool.invoke({"query": QUESTION})
    assert read(chat, [HumanMessage(said)]) == ids(found(rag))
    assert await tool.ainvoke({"query": QUESTION}) == said


async def test_documents_of_any_retriever_get_memories_once(
    rag: SacRag, chat: ChatSac, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressor, method = SacDocumentCompressor(rag=rag), rag.engine.method
    compressed: list[int] = []
    compress = method.compress_contexts
    monkeypatch.setattr(method, "compress_contexts", lambda c, r: compressed.append(len(c)) or compress(c, r))  # type: ignore[func-returns-value]
    stored = found(rag, 1)[0]
    given = [
        Document(page_content="Mary built a barn in 1902.", metadata={"source": "a"}, id="7"),
        stored,
        Document(page_content="  "),
        Document(page_content="The barn burned down.", metadata={**stored.metadata, "sac_text_sha": "?"}),
        Document(page_content="Mary built a barn in 1902."),
    ]
    out = compressor.compress_documents(given, QUESTION)
    assert [d.page_content for d in out] == [d.page_content for d in given]
    assert (out[0].metadata["source"], out[0].id, out[1], out[2]) == ("a", "7", stored, given[2])
    assert given[0].metadata == {"source": "a"}
    assert read(chat, [HumanMessage(format_docs_sac(out, chat))]) == ids([out[0], stored, out[3], out[4]])
    assert out[0].metadata["sac_tag"] == out[4].metadata["sac_tag"] != out[3].metadata["sac_tag"]
    assert await compressor.acompress_documents(given, QUESTION) == out
    assert compressor.compress_documents(out, QUESTION) == out
    assert sum(compressed) == 2
    reply = chat.invoke(format_docs_sac(out[:1], chat))
    assert usage(reply)[1] == slots(rag, ids(out[:1])) > 0


def test_documents_longer_than_a_passage_are_read_as_their_best_passages(rag: SacRag, chat: ChatSac) -> None:
    """A token of this model is a byte: some thirty passages of at most 128."""
    text = "\n\n".join(
        f"House {n} stands on the hill. " + "It has a door, a roof and a garden. " * 2 for n in range(30)
    )
    compressor = SacDocumentCompressor(rag=rag)
    (whole,) = compressor.compress_documents([Document(page_content=text, metadata={"source": "a"})], QUESTION)
    assert whole.page_content == text and compressor.compress_documents([whole], QUESTION) == [whole]
    passages = rag.split(Stored("", text))
    assert len(passages) == 30
    for said in (format_docs_sac([whole], chat), text):  # by its tag, and by its text
        answer = chat.invoke(f"{said}\n\nWhich house?")
        read, memory, _ = usage(answer)
        assert memory < read < 700 < len(text)
        assert answer.response_metadata["notices"] == [
            "of texts longer than a passage the passages that fit best are read, 5 of 30"
        ]
        assert answer.response_metadata["source_tokens"] <= 5 * 128
