"""The standard suites on the default model with its shipped adapter; skipped where it is not in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from langchain_sac import ChatSac, SacVectorStore, create_sac_chain
from sac_rag import SacRag
from sac_rag.records import Document
from tests.integrations.conftest import TEXTS
from tests.integrations.real import default_models

from .helpers import QUESTION, found, tags, usage
from .suites import ChatModelSuite, EmbeddingsSuite, RetrieverSuite

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.minutes]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SacRag]:
    default_models()
    with SacRag.open(tmp_path_factory.mktemp("real") / "real.lib", write=True, create=True) as rag:
        rag.put([Document(uri, text, meta={"kind": uri[0]}) for uri, text in TEXTS.items()])
        yield rag


class TestChatModel(ChatModelSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, real: SacRag) -> None:
        self.opened = real


class TestRetriever(RetrieverSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, real: SacRag) -> None:
        self.opened = real


class TestEmbeddings(EmbeddingsSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, real: SacRag) -> None:
        self.opened = real


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, real: SacRag, tmp_path: Any) -> Iterator[VectorStore]:  # type: ignore[override]
        with SacVectorStore(library=tmp_path / "store.lib") as store:
            yield store


def test_the_chain_answers_as_the_library_does(real: SacRag) -> None:
    asked = real.ask(QUESTION, k=1)
    out = create_sac_chain(real).invoke(QUESTION)
    assert out["answer"].strip() == asked.text
    assert [d.id for d in out["context"]] == [h.passage.id for h in asked.sources]


def test_eight_turns_read_only_what_is_new(real: SacRag) -> None:
    chat = ChatSac(rag=real, max_tokens=8)
    messages: list[BaseMessage] = [SystemMessage("Answer in a few words."), HumanMessage(tags(found(real))[0])]
    before = written = 0
    for turn in range(8):
        messages.append(HumanMessage(f"Turn {turn}: how long is it?"))
        answer = chat.invoke(messages)
        everything, _, now = usage(answer)
        if turn:
            # The last token of a cut answer was chosen but not read; an answer may come back as fewer tokens.
            assert before <= answer.response_metadata["reused_tokens"] <= before + written
            assert everything - answer.response_metadata["reused_tokens"] <= 30
        before, written = everything, now
        messages.append(answer)
