"""As users write it: stores made in one call, copies and pickles, memories through stock wrappers, a word where not."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import EnsembleRetriever, ParentDocumentRetriever
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.stores import InMemoryStore
from langchain_text_splitters import RecursiveCharacterTextSplitter

from langchain_sac import (
    ChatSac,
    SacDocumentCompressor,
    SacEmbeddings,
    SacRetriever,
    SacTranslator,
    SacVectorStore,
    create_sac_chain,
    format_docs_sac,
)
from langchain_sac.formatting import _WARNED, TextWarning
from langchain_sac.messages import to_sac
from sac_rag import SacRag
from sac_rag.errors import ConfigError

from ..conftest import TEXTS
from .helpers import QUESTION, found, ids, tags, usage


@pytest.fixture(autouse=True)
def _warned_afresh() -> Iterator[None]:
    before = set(_WARNED)
    _WARNED.clear()
    yield
    _WARNED.update(before)


@pytest.fixture
def path(rag: SacRag) -> str:
    return str(rag.library.path)


DOCUMENTS = [Document(page_content=text, metadata={"source": name}) for name, text in TEXTS.items()]


async def test_a_store_is_made_in_one_call(tiny_config: Any, tmp_path: Path) -> None:
    settings = {"config": tiny_config}
    with SacVectorStore.from_documents(DOCUMENTS, library=tmp_path / "a.lib", **settings) as one:
        assert len(one.similarity_search(QUESTION, k=9)) == 3
        with SacVectorStore.from_documents(DOCUMENTS[:1], SacEmbeddings(rag=one.rag), rag=one.rag) as same:
            assert len(same.get_by_ids([d.id for d in one.similarity_search(QUESTION, k=9) if d.id])) == 3
    with await SacVectorStore.afrom_documents(DOCUMENTS, None, library=str(tmp_path / "b.lib"), **settings) as two:
        assert two.similarity_search(QUESTION, k=1, filter={"source": "canal.md"})[0].page_content == TEXTS["canal.md"]
    with await SacVectorStore.afrom_texts(["One."], ids=["1"], library=tmp_path / "c.lib", **settings) as three:
        assert [d.id for d in three.get_by_ids(["1"])] == ["1"]
    with pytest.raises(ConfigError, match="DeterministicFakeEmbedding"):
        SacVectorStore.from_documents(DOCUMENTS, DeterministicFakeEmbedding(size=3), library=tmp_path / "d.lib")


def test_searching_opens_for_reading_and_adding_for_writing(tiny_config: Any, tmp_path: Path) -> None:
    folder, code = tmp_path / "a.lib", "from sac_rag.library.library import Library; Library.open({!r}, write=True)"
    SacVectorStore.from_documents(DOCUMENTS, library=folder, config=tiny_config).close()

    def others_may_write() -> bool:
        done = subprocess.run([sys.executable, "-c", code.format(str(folder))], capture_output=True, text=True)
        assert done.returncode == 0 or "LibraryLocked" in done.stderr
        return done.returncode == 0

    store, again = SacVectorStore(library=folder), SacVectorStore(library=folder)
    assert len(store.similarity_search(QUESTION, k=9)) == len(again.as_retriever().invoke(QUESTION)) == 3
    assert store.get_by_ids(["none"]) == [] and not store.rag.library.writable and others_may_write()
    store.add_texts(["A heron waits."], ids=["heron"])
    assert store.rag.library.writable and not others_may_write()
    assert [d.id for d in again.similarity_search("A heron waits.", k=1)] == ["heron"], "a reader follows"
    again.add_texts(["An otter swims."], ids=["otter"])  # the same process shares
    store.close()
    assert not others_may_write()
    again.delete(["otter"])
    del again
    gc.collect()
    assert others_may_write()
    assert [d.id for d in store.get_by_ids(["heron", "otter"])] == ["heron"], "and opens again at its next use"
    store.close()


def test_used_components_are_copied_and_pickled(path: str, rag: SacRag) -> None:
    made: dict[str, tuple[Any, Any]] = {
        "retriever": (SacRetriever(library=path, k=1), lambda c: [d.id for d in c.invoke(QUESTION)]),
        "chat": (ChatSac(library=path, max_tokens=4, where={"kind": "c"}), lambda c: c.invoke("Hi").content),
        "embeddings": (SacEmbeddings(library=path), lambda c: c.embed_query("x")),
        "compressor": (
            SacDocumentCompressor(library=path, meta={"a": 1}),
            lambda c: [d.metadata["sac_id"] for d in c.compress_documents(DOCUMENTS[:1], "")],
        ),
        "store": (SacVectorStore(library=path), lambda c: [d.id for d in c.similarity_search(QUESTION, k=2)]),
        "chain": (create_sac_chain(path, max_tokens=4), lambda c: c.invoke(QUESTION)["answer"]),
        "given": (SacRetriever(rag=rag, k=1), lambda c: [d.id for d in c.invoke(QUESTION)]),
    }
    for name, (component, use) in made.items():
        want = use(component)
        for again in (copy.deepcopy(component), pickle.loads(pickle.dumps(component))):
            assert type(again) is type(component) and use(again) == want, name
    copied = copy.deepcopy(made["given"][0])
    assert copied.rag is rag, "a copy shares what is open"
    sent = pickle.loads(pickle.dumps(made["given"][0]))
    assert sent.library == path and sent.opened() is not rag
    with pickle.loads(pickle.dumps(rag)) as opened:
        assert opened.library.path == rag.library.path and not opened.library.writable


def memories(chat: ChatSac, text: str) -> list[str]:
    """The passages that a ChatSac reads as memory in a prompt."""
    said = to_sac([HumanMessage(text)], chat._scope(chat._call(None, {})))
    return [p.id for m in said for p in m.content if not isinstance(p, str)]


def test_tags_go_through_what_stands_around_a_model(rag: SacRag, chat: ChatSac) -> None:
    documents = found(rag, 2)
    other, want = ChatSac(rag=rag, temperature=1.0), "\n\n".join(tags(documents))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for llm in (
            chat.with_fallbacks([other]),
            chat.bind(max_tokens=3).with_fallbacks([other.with_retry()]).with_config(tags=["a"]),
            chat.configurable_fields(max_tokens=ConfigurableField(id="most")),
        ):
            assert format_docs_sac(documents, llm) == want
            assert create_sac_chain(rag, llm=llm, k=2).invoke(QUESTION)["context"] == documents
    text = "\n\n".join(d.page_content for d in documents)
    for llm, why in (
        (chat.with_fallbacks([FakeListChatModel(responses=["x"])]), "fallback"),
        (chat.with_fallbacks([ChatSac(rag=rag, where={"kind": "t"})]), "fallback"),
        (chat.configurable_fields(where=ConfigurableField(id="where")), "where of the model"),
        (chat.configurable_alternatives(ConfigurableField(id="m"), other=FakeListChatModel(responses=["x"])), "altern"),
    ):
        _WARNED.clear()
        with pytest.warns(TextWarning, match=f"2 document.*{why}"):
            assert format_docs_sac(documents, llm) == text
        # A ChatSac knows the texts again, so nothing is lost but where another model reads them.
        assert memories(chat, text) == ids(documents)


def test_memories_go_through_stock_retrievers(rag: SacRag, chat: ChatSac, tiny_config: Any, tmp_path: Path) -> None:
    with SacVectorStore.from_documents(DOCUMENTS, library=tmp_path / "a.lib", config=tiny_config) as store:
        mine = ChatSac(rag=store.rag, max_tokens=1)
        plain = store.similarity_search(QUESTION, k=2)
        assert all(set(d.metadata) == {"source"} for d in plain)
        stored = [i for d in plain for i in store.rag.library.passage_ids(d.id or "")]
        assert memories(mine, format_docs_sac(plain, mine)) == stored
        assert memories(mine, "\n".join(d.page_content for d in plain)) == stored, "joined by hand"
        both = EnsembleRetriever(retrievers=[SacRetriever(rag=store.rag, k=3), store.as_retriever()])
        assert len(memories(mine, format_docs_sac(both.invoke(QUESTION), mine))) == 3
        edited = Document(page_content=plain[0].page_content + " Not.", id=plain[0].id)
        with pytest.warns(TextWarning, match=r"1 document.*a\.lib holds no memory"):
            assert format_docs_sac([edited], mine) == edited.page_content
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert format_docs_sac([edited], mine) == edited.page_content, "said once"
            assert format_docs_sac([edited], FakeListChatModel(responses=["x"])) == edited.page_content
    with SacVectorStore(library=tmp_path / "b.lib", config=tiny_config) as children:
        splitter = RecursiveCharacterTextSplitter(chunk_size=40, chunk_overlap=0)
        parents = ParentDocumentRetriever(vectorstore=children, docstore=InMemoryStore(), child_splitter=splitter)
        parents.add_documents(DOCUMENTS)
        reader = ChatSac(rag=children.rag, max_tokens=1)
        _WARNED.clear()
        with pytest.warns(TextWarning, match="SacDocumentCompressor"):
            whole = format_docs_sac(parents.invoke(QUESTION), reader)
        assert memories(reader, whole) != [] or TEXTS["canal.md"] in whole
        out = create_sac_chain(children.rag, retriever=parents, llm=reader).invoke(QUESTION)
        assert len(memories(reader, format_docs_sac(out["context"], reader))) == len(out["context"]), "compressed"


def test_documents_that_are_cut_or_rewritten_are_read_as_text_with_a_word(rag: SacRag, chat: ChatSac) -> None:
    (document,) = found(rag, 1)
    notice = "passages that stand here cut off, in another form or long after their search are read as text: 1"
    for text in (document.page_content[:60], " ".join(document.page_content.split()[:9]) + " …"):
        _WARNED.clear()
        with pytest.warns(TextWarning, match="answers from 1 document.*cut off, in another form"):
            answer = chat.invoke(f"{text}\n\n{QUESTION}")
        assert answer.response_metadata["notices"] == [notice] and usage(answer)[1] == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "notices" not in chat.invoke(f"{document.page_content}\n\n{QUESTION}").response_metadata
        mine = ChatSac(rag=rag, max_tokens=2, where={"kind": "none"})
        assert "notices" in chat.invoke(document.page_content[:60]).response_metadata, "said once, noted each time"
        assert mine.invoke(document.page_content + "?").content


def test_what_other_stores_take_is_taken_or_refused_by_name(tiny_config: Any, tmp_path: Path) -> None:
    import uuid

    keys = [uuid.UUID(int=n) for n in range(3)]
    with SacVectorStore.from_documents(DOCUMENTS, library=tmp_path / "a.lib", config=tiny_config, ids=keys) as store:
        assert [d.id for d in store.get_by_ids([str(k) for k in keys])] == [str(k) for k in keys]
        assert store.add_documents(DOCUMENTS[:2], ids=[0, 7], batch_size=1) == ["0", "7"]  # type: ignore[list-item]
        assert [d.id for d in store.get_by_ids("7")] == ["7"] and store.delete([0])  # type: ignore[list-item]
        assert store.count() == 4 and store.delete("7") and store.count() == 3  # type: ignore[arg-type]
        assert store.delete([]) and store.delete(["nothing"]) and store.count() == 3
        assert store.delete(filter={"source": "tides.md"}) and store.count() == 2
        assert store.delete([str(keys[1])], filter={"source": "bridge.md"}) and store.count() == 2
        for refused in ({"where": {"source": "canal.md"}}, {"delete_all": True}, {"namespace": "a"}):
            with pytest.raises(ConfigError, match=f"delete takes no '{next(iter(refused))}'"):
                store.delete(**refused)
        assert store.count() == 2

        scored = store.similarity_search_with_score(QUESTION, k=2)
        between = (scored[0][1] + scored[1][1]) / 2
        best = [scored[0][0]]
        assert store.similarity_search(QUESTION, score_threshold=between, fetch_k=20) == best
        assert (
            store.similarity_search_by_vector(store.embeddings.embed_query(QUESTION), score_threshold=between) == best
        )
        kept = store.as_retriever(search_kwargs={"k": 2, "score_threshold": between, "fetch_k": 9}).invoke(QUESTION)
        assert [d.id for d in kept] == [best[0].id]
        for given in ({"where_document": {"$contains": "a"}}, {"namespace": "a"}, {"pre_filter": {}}):
            for search in (store.similarity_search, store.max_marginal_relevance_search):
                with pytest.raises(ConfigError, match=f"takes no '{next(iter(given))}'"):
                    search(QUESTION, **given)  # type: ignore[operator]
        found_ = SacRetriever(rag=store.rag).invoke(QUESTION, filter={"source": "canal.md"})
        assert [d.metadata["source"] for d in found_] == ["canal.md"]
    for unknown in ({"collection_name": "a"}, {"persist_directory": "a"}):
        with pytest.raises(ConfigError, match=f"SacVectorStore takes no '{next(iter(unknown))}'; it takes library"):
            SacVectorStore.from_documents(DOCUMENTS, **unknown)
    with pytest.raises(ConfigError, match="the question is a dict"):
        SacRetriever(library=str(tmp_path / "a.lib")).invoke({"input": QUESTION})  # type: ignore[arg-type]


def test_a_model_says_how_much_it_reads_and_counts_tools(rag: SacRag, path: str) -> None:
    chat = ChatSac(rag=rag)
    assert chat.profile is not None and chat.profile["max_input_tokens"] == rag.context_length
    assert "max_input_tokens" not in (ChatSac(library=path).profile or {}), "not open yet"
    tool = {"name": "search", "description": "Searches.", "parameters": {"type": "object", "properties": {}}}
    said = [HumanMessage("Hi")]
    more = chat.get_num_tokens_from_messages(said, tools=[tool]) - chat.get_num_tokens_from_messages(said)
    assert more == len(chat.get_token_ids(json.dumps({"type": "function", "function": tool})))


def test_what_a_model_may_not_read_it_does_not_recall(rag: SacRag) -> None:
    (document,) = found(rag, 1)
    text, (own,) = document.page_content, ids([document])
    for chat, want in (
        (ChatSac(rag=rag), [own]),
        (ChatSac(rag=rag, recall=False), []),
        (ChatSac(rag=rag, where={"kind": {"$ne": document.metadata["kind"]}}), []),
        (ChatSac(rag=rag, allowed_ids=[]), []),
        (ChatSac(rag=rag, allowed_ids=[own]), [own]),
    ):
        prompt = chat._asked([HumanMessage(text)], None, {}).prompt
        assert (prompt.source_tokens > 0) == bool(want)
    assert usage(ChatSac(rag=rag, max_tokens=1).invoke(text, recall=False))[1] == 0


def test_a_filter_that_is_none_is_refused_where_it_is_given(path: str) -> None:
    for make in (ChatSac, SacRetriever):
        with pytest.raises(ConfigError, match="regex"):
            make(library=path, where={"a": {"$regex": "x"}})


def test_questions_with_conditions_are_filters(tiny_config: Any, tmp_path: Path) -> None:
    from langchain_classic.chains.query_constructor.schema import AttributeInfo
    from langchain_classic.retrievers import SelfQueryRetriever
    from langchain_core.runnables import RunnableLambda
    from langchain_core.structured_query import Comparator as C
    from langchain_core.structured_query import Comparison, Operation, Operator, StructuredQuery

    metas = [
        {"year": 2020, "tags": ["a", "b"], "by": "Ann Lee"},
        {"year": 2021, "tags": ["b"], "by": "Bob"},
        {"day": "2024-05-01"},
    ]
    documents = [Document(page_content=t, metadata=m) for t, m in zip(TEXTS.values(), metas, strict=True)]
    with SacVectorStore.from_documents(documents, library=tmp_path / "a.lib", config=tiny_config) as store:

        def found(condition: Any) -> list[int]:
            query = StructuredQuery(query="canal", filter=condition, limit=None)
            retriever = SelfQueryRetriever(
                vectorstore=store,
                query_constructor=RunnableLambda(lambda _: query),
                structured_query_translator=SacTranslator(),
                search_kwargs={"k": 9},
            )
            texts = [d.page_content for d in retriever.invoke("canal?")]
            return sorted(list(TEXTS.values()).index(t) for t in texts)

        written = 'and(gt("year", 2020), or(contain("tags", "b"), eq("by", "Ann Lee")))'
        llm = FakeListChatModel(responses=[json.dumps({"query": "canal", "filter": written})])
        about = [AttributeInfo(name=name, description=name, type="string") for name in ("year", "tags", "by")]
        asking = SelfQueryRetriever.from_llm(llm, store, "Notes", about, structured_query_translator=SacTranslator())
        assert [d.metadata for d in asking.invoke("canals after 2020?")] == [metas[1]]

        is_ = lambda c, key, value: Comparison(comparator=c, attribute=key, value=value)  # noqa: E731
        assert found(None) == [0, 1, 2]
        assert found(is_(C.GT, "year", 2020)) == [1]
        assert found(is_(C.CONTAIN, "tags", "a")) == [0] and found(is_(C.CONTAIN, "by", "Lee")) == [0]
        assert found(is_(C.LIKE, "by", "%ann%")) == [0] and found(is_(C.LIKE, "by", "ann")) == [0]
        assert found(is_(C.LIKE, "by", "%ann")) == [] and found(is_(C.LIKE, "by", "ann%")) == [0]
        assert found(is_(C.CONTAIN, "tags", "")) == [] and found(is_(C.NIN, "year", [2020])) == [1, 2]
        assert found(is_(C.LTE, "day", {"date": "2024-05-01", "type": "date"})) == [2]
        either = Operation(operator=Operator.OR, arguments=[is_(C.EQ, "year", 2020), is_(C.EQ, "by", "Bob")])
        assert found(either) == [0, 1]
        assert found(Operation(operator=Operator.NOT, arguments=[either])) == [2]
