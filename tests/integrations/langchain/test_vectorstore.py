"""SacVectorStore beyond the standard suite: long documents whole, filters, diversity, memories for chains, refusals."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.load import dumps, loads
from langchain_core.messages import HumanMessage

from langchain_sac import ChatSac, SacEmbeddings, SacRetriever, SacVectorStore, create_sac_chain, format_docs_sac
from sac_rag import AskConfig, SacRag
from sac_rag.errors import ConfigError
from tests.integrations.conftest import TEXTS

from .helpers import QUESTION, read, usage

LONG = "\n  " + "\n\n".join(f"Chapter {n}.\tThe canal was widened in {1800 + n}. \n" for n in range(12)) + " \n"


@pytest.fixture
def store(tiny_config: Any, tmp_path: Path) -> Iterator[SacVectorStore]:
    with SacVectorStore(library=tmp_path / "store.lib", config=tiny_config) as opened:
        yield opened


def test_long_documents_are_passages_to_search_and_whole_by_id(store: SacVectorStore) -> None:
    metadata = {"page": 3, "document": "mine", "pages": 12, "deep": {"a": [1]}}
    given = Document(page_content=LONG, metadata=metadata, id="long")
    assert store.add_documents([given, Document(page_content="Short.", id="short")]) == ["long", "short"]
    assert len(store.rag.library.passage_ids("long")) > 1
    assert store.get_by_ids(["short", "nothing", "long"]) == [Document(page_content="Short.", id="short"), given]
    found = store.similarity_search("the canal in 1805", k=3, filter={"page": 3})
    assert {(d.id, d.metadata == metadata) for d in found} == {("long", True)}
    assert all(d.page_content in LONG and d.page_content != LONG for d in found)
    store.delete(["long"])
    assert store.get_by_ids(["long"]) == [] and store.rag.library.passage_ids("long") == []
    store.delete()
    assert store.similarity_search("x") == []


async def test_filters_scores_and_diversity(store: SacVectorStore) -> None:
    texts = [*TEXTS.values(), TEXTS["canal.md"] + " "]
    ids = store.add_texts(texts, [{"kind": str(n)} for n in range(4)])
    assert len(set(ids)) == 4
    scored = store.similarity_search_with_score(QUESTION, k=4)
    scores = [s for _, s in scored]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= -1 and scores[0] <= 1
    vectors = SacEmbeddings(rag=store.rag)
    query = vectors.embed_query(QUESTION)
    for document, score in scored:
        (vector,) = vectors.embed_documents([document.page_content])
        assert sum(a * b for a, b in zip(query, vector, strict=True)) == pytest.approx(score, abs=1e-5)
    assert store.similarity_search_by_vector(query, k=4) == [d for d, _ in scored]
    assert await store.asimilarity_search_with_score(QUESTION, k=4) == scored
    assert {d.metadata["kind"] for d in store.similarity_search(QUESTION, filter={"kind": ["0", "2"]})} == {"0", "2"}
    twice = store.similarity_search(TEXTS["canal.md"], k=2)
    assert twice[0].page_content == twice[1].page_content
    diverse = store.max_marginal_relevance_search(TEXTS["canal.md"], k=2, lambda_mult=0.1)
    assert diverse[0].page_content == twice[0].page_content != diverse[1].page_content
    assert await store.amax_marginal_relevance_search(TEXTS["canal.md"], k=2, lambda_mult=0.1) == diverse
    close = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": 0.999})
    assert {d.page_content for d in close.invoke(TEXTS["canal.md"])} == {TEXTS["canal.md"]}


def test_retrievers_of_a_store_feed_the_model(store: SacVectorStore) -> None:
    store.add_documents([Document(page_content=t, id=i, metadata={"n": 1}) for i, t in TEXTS.items()])
    retriever, chat = store.as_retriever(search_kwargs={"k": 2}), ChatSac(rag=store.rag, max_tokens=6)
    documents = retriever.invoke(QUESTION)
    assert documents == loads(dumps(documents), allowed_objects=[Document])
    assert read(chat, [HumanMessage(format_docs_sac(documents, chat))]) == [d.metadata["sac_id"] for d in documents]
    assert documents[0].id in TEXTS and documents[0].metadata["n"] == 1
    assert set(store.similarity_search(QUESTION)[0].metadata) == {"n"}
    chained = create_sac_chain(chat, retriever=retriever, llm=chat).invoke(QUESTION)
    assert chained["context"] == documents
    want = store.rag.ask(QUESTION, AskConfig(k=2, search="dense", max_new_tokens=6))
    assert chained["answer"].strip() == want.text
    assert usage(chat.invoke(format_docs_sac(documents, chat)))[1] > 0


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("similarity", {}), ("mmr", {"lambda_mult": 0.1}), ("similarity_score_threshold", {"score_threshold": 0.0})],
)
async def test_every_search_of_a_retriever_leads_to_memories(
    store: SacVectorStore, kind: str, settings: dict[str, Any]
) -> None:
    store.add_texts(list(TEXTS.values()), [{"kind": n} for n in "tcb"])
    chat = ChatSac(rag=store.rag)
    search: dict[str, Any] = {"k": 2, "filter": {"kind": ["t", "c"]}, **settings}
    retriever = store.as_retriever(search_type=kind, search_kwargs=search)
    documents = retriever.invoke(QUESTION)
    assert {d.metadata["kind"] for d in documents} == {"t", "c"}
    assert read(chat, [HumanMessage(format_docs_sac(documents, chat))]) == [d.metadata["sac_id"] for d in documents]
    assert await retriever.ainvoke(QUESTION) == documents


def test_texts_are_embedded_once(store: SacVectorStore, embedded: list[str]) -> None:
    texts, vectors = list(TEXTS.values()), SacEmbeddings(rag=store.rag)
    store.add_documents([Document(page_content=t, id=i) for i, t in TEXTS.items()])
    SacVectorStore.from_texts(["One."], vectors, rag=store.rag, ids=["1"])
    assert embedded == [*texts, "One."]
    embedded.clear()
    fresh = [t + " Indeed." for t in texts]
    pairs = list(zip(fresh, vectors.embed_documents(fresh), strict=True))
    ids = store.add_embeddings(pairs, [{"n": n} for n in range(3)])
    assert embedded == fresh
    assert [d.metadata for d in store.get_by_ids(ids)] == [{"n": n} for n in range(3)]
    ((found, score),) = store.similarity_search_with_score(fresh[1], k=1)
    assert (found.page_content, score) == (fresh[1], pytest.approx(1, abs=1e-5))
    embedded.clear()
    store.add_embeddings([(LONG, vectors.embed_documents([LONG])[0])], ids=["long"])
    assert embedded == [LONG, *(p.text for p in store.rag.library.passages("long"))]


def test_vectors_of_another_embedder_are_refused(store: SacVectorStore) -> None:
    strange = DeterministicFakeEmbedding(size=store.rag.embedder.dim).embed_documents(["One.", "Two."])
    with pytest.raises(ConfigError, match="text 0 .32 numbers. is not by the library's embedder .*store.embeddings"):
        store.add_embeddings(zip(["One.", "Two."], strange, strict=True))
    good = store.embeddings.embed_documents(["One."])
    with pytest.raises(ConfigError, match="text 1 .3 numbers."):
        store.add_embeddings([("One.", good[0]), ("Two.", [1.0, 0.0, 0.0])])
    with pytest.raises(ConfigError, match="2 metadatas for 1 texts"):
        store.add_embeddings([("One.", good[0])], [{}, {}])
    assert store.rag.library.documents() == []


def test_a_store_is_a_library_and_opens_again(store: SacVectorStore, tiny_config: Any) -> None:
    store.add_texts(["One.", "Two."], ids=["1", "2"])
    path = store.rag.library.path
    store.close()
    with SacRag.open(path) as rag:
        assert [p.text for p in rag.library.passages()] == ["One.", "Two."]
    again = SacVectorStore.from_texts(["Three."], SacEmbeddings(library=str(path)), ids=["3"], library=path)
    assert [d.page_content for d in again.get_by_ids(["1", "2", "3"])] == ["One.", "Two.", "Three."]
    again.close()


def test_the_same_text_and_metadata_are_one_document(store: SacVectorStore) -> None:
    one, two = {"by": "ann", "at": {"page": 1, "line": 2}}, {"at": {"line": 2, "page": 1}, "by": "ann"}
    assert store.add_texts(["One."], [one]) == store.add_texts(["One."], [two])
    assert store.add_texts(["One."], [{"by": "bob"}]) != store.add_texts(["One."])
    assert len(store.rag.library.documents()) == 3


def test_metadata_of_other_types_are_stored_and_filtered_by(store: SacVectorStore) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    values: dict[str, Any] = {
        "at": datetime.datetime(2024, 5, 1, 1, 0, tzinfo=zone),
        "day": datetime.date(2024, 5, 1),
        "size": np.float32(1.5),
        "path": Path("a/b"),
        "tags": {"x", "y"},
        "_id": 7,
        "score": 3,
        "document": "mine",
    }
    store.add_documents([Document(page_content="One.", metadata=values, id="1"), Document(page_content="Two.", id="2")])
    (kept,) = store.get_by_ids(["1"])
    assert kept.metadata == {
        **{"at": "2024-04-30T23:00:00+00:00", "day": "2024-05-01", "size": 1.5, "path": "a/b", "tags": ["x", "y"]},
        **{"_id": 7, "score": 3, "document": "mine"},
    }
    for where in (
        {"at": {"$lt": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)}},
        {"day": {"$gte": datetime.date(2024, 4, 30)}},
        {"tags": "y", "size": np.float64(1.5)},
        {"document": "mine"},
        {"$document": "1"},
        {"$or": [{"_id": {"$in": [7, 8]}}, {"size": {"$gt": 9}}]},
    ):
        assert [d.id for d in store.similarity_search("x", filter=where)] == ["1"], where
    with pytest.raises(ConfigError, match=r"unknown operator '\$regex' for 'path'"):
        store.similarity_search("x", filter={"path": {"$regex": "a.*"}})
    found = SacRetriever(rag=store.rag, where={"_id": 7}).invoke("One")[0].metadata
    assert (found["document"], found["score"], found["tags"], found["sac_document"]) == ("mine", 3, ["x", "y"], "1")


def test_keys_that_are_no_texts_come_back(store: SacVectorStore) -> None:
    store.add_documents([Document(page_content="One.", metadata={1: "a", "b": 2}, id="1")])  # type: ignore[dict-item]
    assert store.get_by_ids(["1"])[0].metadata == {1: "a", "b": 2}
    with pytest.raises(ConfigError, match="'1'"):
        store.add_documents([Document(page_content="One.", metadata={1: "a", "1": 2})])  # type: ignore[dict-item]


async def test_writers_of_one_library_take_turns(store: SacVectorStore) -> None:
    import asyncio

    other = SacVectorStore(store.rag)
    await asyncio.gather(*((store, other)[n % 2].aadd_texts([f"Text {n}."], ids=[str(n)]) for n in range(6)))
    assert {d.id for d in await other.aget_by_ids([str(n) for n in range(6)])} == {str(n) for n in range(6)}


def test_what_cannot_be_stored_is_refused_whole(store: SacVectorStore) -> None:
    good = Document(page_content="Good.")
    with pytest.raises(ConfigError, match="'blank-one' is blank"):
        store.add_documents([good, Document(page_content=" \n", id="blank-one")])
    with pytest.raises(ConfigError, match="'scan'.*bytes"):
        store.add_documents([good, Document(page_content="Bad.", metadata={"scan": b"x"})])
    with pytest.raises(ConfigError, match="metadata 'price' of document 'dear'"):
        store.add_documents([good, Document(page_content="Bad.", metadata={"price": float("nan")}, id="dear")])
    with pytest.raises(ConfigError, match="1 ids for 2"):
        store.add_documents([good, good], ids=["1"])
    with pytest.raises(ConfigError, match="filter is a str"):
        store.similarity_search("x", filter="kind = 1")  # type: ignore[arg-type]
    assert store.rag.library.documents() == []
    with pytest.raises(ConfigError, match="DeterministicFakeEmbedding"):
        SacVectorStore.from_texts(["x"], DeterministicFakeEmbedding(size=3), rag=store.rag)
    with pytest.raises(ConfigError, match="library="):
        SacVectorStore()
    with pytest.raises(ConfigError, match=r"config is given for .*store\.lib"):
        SacVectorStore(store.rag, config=store.rag.config)
