"""The LangChain retriever: real text, plain metadata, `k` and filters, the same answer sync and async."""

from __future__ import annotations

import json

from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever

from langchain_sac import SacRetriever
from sac_rag import AskConfig, SacRag

from .conftest import TEXTS

KEYS = {"sac_id", "document", "start", "end", "score", "heading"}


def test_documents_are_the_passages_found(rag: SacRag) -> None:
    retriever = SacRetriever(rag=rag, search="lexical")
    assert isinstance(retriever, BaseRetriever)
    found = retriever.invoke("How many miles does the Erie Canal span?")
    assert found[0].page_content == TEXTS["canal.md"]
    for document in found:
        m = document.metadata
        assert set(m) == KEYS
        assert document.page_content == TEXTS[m["document"]][m["start"] : m["end"]]
        assert m["heading"] == "Facts"
        assert document.id == m["sac_id"]
        assert rag.library.get([m["sac_id"]])[0].text == document.page_content
    assert [d.metadata["score"] for d in found] == sorted((d.metadata["score"] for d in found), reverse=True)


def test_documents_survive_serialisation(rag: SacRag) -> None:
    (found,) = SacRetriever(rag=rag, k=1).invoke("tides")
    assert json.loads(dumps(found))["kwargs"]["metadata"] == found.metadata


async def test_k_where_and_async_agree_with_the_library(rag: SacRag) -> None:
    retriever = SacRetriever(rag=rag, k=2)
    question = "Who crossed the bridge?"
    expected = [hit.passage.text for hit in rag.retrieve(question, AskConfig(k=5))]
    assert len(expected) == 3
    assert [d.page_content for d in retriever.invoke(question)] == expected[:2]
    assert [d.page_content for d in await retriever.ainvoke(question)] == expected[:2]
    assert [d.page_content for d in retriever.invoke(question, k=3)] == expected
    assert [d.page_content for d in await retriever.ainvoke(question, k=1)] == expected[:1]
    only = SacRetriever(rag=rag, where={"kind": "t"})
    assert [d.metadata["document"] for d in only.invoke(question)] == ["tides.md"]
