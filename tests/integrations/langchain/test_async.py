"""Nothing async computes, reads files or waits on the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document

from langchain_sac import (
    ChatSac,
    SacDocumentCompressor,
    SacDocumentPrompt,
    SacEmbeddings,
    SacRetriever,
    SacVectorStore,
    create_sac_chain,
    sac_prompt,
)
from tests.integrations.conftest import TEXTS
from tests.integrations.off_loop import Watched, drained

from .helpers import QUESTION


@pytest.fixture
def store(tiny_config: Any, tmp_path: Path) -> Iterator[SacVectorStore]:
    with SacVectorStore(library=tmp_path / "store.lib", config=tiny_config) as opened:
        opened.add_texts(list(TEXTS.values()))
        yield opened


async def test_async_methods_do_not_block(store: SacVectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rag = store.rag
    chat, retriever = ChatSac(rag=rag, max_tokens=3), SacRetriever(rag=rag, k=1)
    prompt, foreign = sac_prompt(chat), [Document("Mary built a barn in 1902.")]
    stuff = create_stuff_documents_chain(chat, prompt, document_prompt=SacDocumentPrompt(llm=chat))
    stock = create_retrieval_chain(retriever, stuff)
    own = create_sac_chain(rag, retriever=store.as_retriever(), llm=chat)
    named = "conversation cite retrieve remember put remove".split()
    seen = Watched(
        monkeypatch, *((rag, n) for n in named), (rag.engine, "busy"), (rag.engine.service, "submit"),
        *((rag.library, n) for n in ("search", "documents", "passages", "load")), (rag.embedder, "encode"),
        (ChatSac, "_call"),  # imports torch
    )  # fmt: skip

    await chat.ainvoke(QUESTION)
    await chat.abatch([QUESTION, "Why?"])
    await drained(chat.astream("Why?"))
    await retriever.ainvoke(QUESTION)
    await SacDocumentCompressor(rag=rag).acompress_documents(foreign, QUESTION)
    await stock.ainvoke({"input": QUESTION})
    await drained(stock.astream({"input": QUESTION}))
    await own.ainvoke(QUESTION)
    await drained(own.astream(QUESTION))
    await store.aadd_documents([Document("It burned down.", id="barn")])
    await store.aget_by_ids(["barn"])
    await store.asimilarity_search_with_score(QUESTION)
    await store.amax_marginal_relevance_search(QUESTION)
    await store.adelete(["barn"])
    await SacEmbeddings(rag=rag).aembed_query(QUESTION)
    await SacEmbeddings(rag=rag).aembed_documents([QUESTION])
    assert seen.on_loop == set()
    assert seen.elsewhere == {*named, "busy", "search", "documents", "passages", "load", "encode", "_call"}
