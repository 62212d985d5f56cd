"""The LangChain retriever: real text, plain metadata, `k` and filters, the same documents sync and async."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever

from langchain_sac import SacEmbeddings, SacRetriever
from langchain_sac.opening import user_of
from sac_rag import AskConfig, IndexConfig, SacRag
from sac_rag.answer.tags import text_digest
from sac_rag.records import Document
from tests.integrations.conftest import TEXTS

from .helpers import QUESTION

KEYS = {"sac_id", "sac_tag", "sac_text_sha", "document", "start", "end", "score", "heading", "kind"}


def test_documents_are_the_passages_found(rag: SacRag) -> None:
    retriever = SacRetriever(rag=rag, search_type="lexical")
    assert isinstance(retriever, BaseRetriever)
    found = retriever.invoke("How many miles does the Erie Canal span?")
    assert found[0].page_content == TEXTS["canal.md"]
    for document in found:
        m = document.metadata
        assert set(m) == KEYS
        assert all(isinstance(v, str | int | float) for v in m.values())
        assert document.page_content == TEXTS[m["document"]][m["start"] : m["end"]]
        assert (m["heading"], m["kind"]) == ("Facts", m["document"][0])
        assert document.id == m["sac_id"]
        assert rag.library.get([m["sac_id"]])[0].text == document.page_content
        assert (m["sac_tag"], m["sac_text_sha"]) == (rag.tag(m["sac_id"]), text_digest(document.page_content))
    assert [d.metadata["score"] for d in found] == sorted((d.metadata["score"] for d in found), reverse=True)
    (first,) = retriever.invoke("miles", k=1)
    assert json.loads(dumps(first))["kwargs"]["metadata"] == first.metadata


def test_a_retriever_by_folder_finds_what_is_indexed_later(chat_config: IndexConfig, tmp_path: Path) -> None:
    question = "Who keeps bees?"
    with SacRag.open(tmp_path / "grows.lib", config=chat_config, write=True, create=True) as rag:
        rag.put([Document("a", "Ada tends the lamps.")])
        given, by_folder = SacRetriever(rag=rag), SacRetriever.from_library(tmp_path / "grows.lib")
        chain_user = user_of(by_folder)
        assert [d.metadata["document"] for d in by_folder.invoke(question)] == ["a"]
        rag.put([Document("b", "Bert keeps bees.")])
        assert {d.metadata["document"] for d in by_folder.invoke(question)} == {"a", "b"}
        assert by_folder.rag is not rag and given.opened() is rag is user_of(given)["rag"]
        assert user_of(by_folder) == chain_user == {"rag": None, "library": str(tmp_path / "grows.lib")}


async def test_k_where_and_async_agree_with_the_library(rag: SacRag) -> None:
    retriever = SacRetriever(rag=rag, k=2)
    question = "Who crossed the bridge?"
    expected = [hit.passage.text for hit in rag.retrieve(question, AskConfig(k=5))]
    assert len(expected) == 3
    assert [d.page_content for d in retriever.invoke(question)] == expected[:2]
    assert [d.page_content for d in await retriever.ainvoke(question)] == expected[:2]
    assert [d.page_content for d in retriever.invoke(question, k=3)] == expected
    assert [d.page_content for d in await retriever.ainvoke(question, k=1)] == expected[:1]
    only = SacRetriever(rag=rag, where={"kind": ["t", "c"]})
    assert {d.metadata["document"] for d in only.invoke(question)} == {"tides.md", "canal.md"}
    assert [d.metadata["document"] for d in only.invoke(question, where={"kind": "t"})] == ["tides.md"]
    assert only.invoke(question, where={"kind": "b"}) == []


@pytest.mark.parametrize("search_type", ["hybrid", "dense", "lexical"])
def test_search_types_are_the_librarys(rag: SacRag, search_type: str) -> None:
    question = "the Moon above a rooster"
    want = rag.retrieve(question, AskConfig(k=3, search=search_type))
    found = SacRetriever(rag=rag, search_type=search_type, k=3).invoke(question)
    assert [(d.id, d.metadata["score"]) for d in found] == [(h.passage.id, h.score) for h in want]
    if search_type == "lexical":
        assert {d.metadata["document"] for d in found} == {"tides.md", "bridge.md"}


async def test_mmr_takes_one_of_two_alike(tiny_config: IndexConfig, tmp_path: Path) -> None:
    canal = TEXTS["canal.md"]
    with SacRag.open(tmp_path / "alike.lib", config=tiny_config, write=True, create=True) as rag:
        alike = f"{canal} Yes."
        rag.put([Document(f"{n}", text) for n, text in enumerate([canal, alike, f"{canal} ", *TEXTS.values()])])
        plain = SacRetriever(rag=rag, k=2).invoke(QUESTION)
        retriever = SacRetriever(rag=rag, k=2, search_type="mmr")
        diverse = retriever.invoke(QUESTION)
        assert {d.page_content for d in plain} == {canal, alike}, "a copy takes no place"
        assert len({d.page_content for d in diverse} & {canal, alike}) == 1
        assert await retriever.ainvoke(QUESTION) == diverse
        assert len(retriever.invoke(QUESTION, k=5, where={"document": ["0", "5"]})) == 2


def test_another_search_type_is_refused(rag: SacRag) -> None:
    with pytest.raises(ValueError, match=r"'hybrid', 'dense', 'lexical' or 'mmr'"):
        SacRetriever(rag=rag, search_type="sparse")


def test_embeddings_are_the_librarys(rag: SacRag) -> None:
    (vector,) = rag.embedder.encode(["tides"])
    assert SacEmbeddings(rag=rag).embed_documents(["tides"]) == [vector.tolist()]
    assert SacEmbeddings(model=rag.config.embedder).embed_documents(["tides"]) == [vector.tolist()]
    assert SacEmbeddings(library=str(rag.library.path)).embed_query("tides") == vector.tolist()
    with pytest.raises(ValueError, match=r"'other'.*three\.lib"):
        SacEmbeddings(rag=rag, model="other")
