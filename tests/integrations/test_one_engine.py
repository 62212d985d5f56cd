"""However many shells one process has, it loads the model and the embedder once, and they share one batch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.llms.sac import SacLLM
from llama_index.response_synthesizers.sac import SacSynthesizer
from llama_index.retrievers.sac import SacRetriever as SacNodeRetriever

from langchain_sac import ChatSac, SacEmbeddings, SacRetriever, create_sac_chain
from sac_cli.main import run
from sac_rag import IndexConfig, SacRag
from sac_rag.answer import engine
from sac_rag.answer.engine import Engine
from sac_rag.models.embedder import Embedder
from sac_rag.models.loading import choose_device
from sac_rag.records import Document

from .conftest import TEXTS

QUESTION = "How many miles does the Erie Canal span?"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded in a process that begins here."""
    found: list[str] = []
    load, read = engine.load_base, Embedder._load

    def load_base(*args: Any) -> Any:
        found.append("model")
        return load(*args)

    def loading(self: Embedder) -> None:
        if self._forward is None:
            found.append("embedder")
        read(self)

    monkeypatch.setattr(engine, "load_base", load_base)
    monkeypatch.setattr(Embedder, "_load", loading)
    monkeypatch.setattr(Engine, "_shared", {})
    monkeypatch.setattr(Embedder, "_shared", {})
    return found


def test_chains_engines_and_the_cli_load_the_weights_once(
    loaded: list[str], tiny_config: IndexConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = str(tmp_path / "three.lib")
    with SacRag.open(library, config=tiny_config, write=True, create=True) as rag:
        rag.put([Document(uri, text) for uri, text in TEXTS.items()])
    chat, llm = ChatSac(library=library, max_tokens=4), SacLLM(library=library, max_tokens=4)
    query = RetrieverQueryEngine(SacNodeRetriever.from_library(library, k=1), SacSynthesizer(llm))
    shells: list[Callable[[], Any]] = [
        lambda: create_sac_chain(library, max_tokens=4).invoke(QUESTION),
        lambda: chat.invoke(QUESTION),
        lambda: SacRetriever(library=library).invoke(QUESTION),
        lambda: SacEmbeddings(model=tiny_config.embedder).embed_query(QUESTION),
        lambda: query.query(QUESTION),
    ]
    with ThreadPoolExecutor(len(shells)) as threads:
        assert all([future.result() for future in [threads.submit(shell) for shell in shells]])
    where = choose_device("auto").type
    for device in ("auto", where):
        assert run(["ask", QUESTION, "--library", library, "--device", device, "--json"]) == 0
    assert sorted(loaded) == ["embedder", "model"]
    assert chat.opened() is llm.rag  # of both frameworks
    assert (
        Engine.shared(tiny_config.model, tiny_config.method, tiny_config.adapter, dtype="float16", device=where)
        is not llm.rag.engine
    )  # another dtype is another engine
