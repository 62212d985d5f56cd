"""langchain-tests' own suites, on tiny random models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from langchain_sac import ChatSac, SacDocumentIndex, SacEmbeddings, SacVectorStore
from sac_rag import SacRag

from .suites import ChatModelSuite, EmbeddingsSuite, RetrieverSuite


class TestChatModelUnit(ChatModelUnitTests):
    """The library is not there: making a model opens nothing."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSac

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"library": "not-there.lib"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # No key is needed, and unknown fields are errors.
        return {k: v for k, v in super().standard_chat_model_params.items() if k != "api_key"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"SAC_LIBRARY": "env.lib"}, {}, {"library": "env.lib"}

    @pytest.mark.xfail(
        raises=ValueError,
        reason="the suite revives with allowed_objects='all', which is a list of packages in langchain-core; "
        "test_chat.py revives with allowed_objects=[ChatSac]",
    )
    def test_serdes(self, model: BaseChatModel, snapshot: Any) -> None:
        super().test_serdes(model, snapshot)


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SacEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"library": "not-there.lib"}


NOISE = pytest.mark.xfail(raises=AssertionError, reason="a random model cannot know what to say")


class TestChatModel(ChatModelSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, rag: SacRag) -> None:
        self.opened = rag

    @NOISE
    def test_tool_calling(self, model: BaseChatModel) -> None:
        super().test_tool_calling(model)

    @NOISE
    async def test_tool_calling_async(self, model: BaseChatModel) -> None:
        await super().test_tool_calling_async(model)

    @NOISE
    def test_unicode_tool_call_integration(self, model: BaseChatModel) -> None:  # type: ignore[override]
        super().test_unicode_tool_call_integration(model)


class TestRetriever(RetrieverSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, rag: SacRag) -> None:
        self.opened = rag


class TestEmbeddings(EmbeddingsSuite):
    @pytest.fixture(autouse=True)
    def _opened(self, rag: SacRag) -> None:
        self.opened = rag


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tiny_config: Any, tmp_path: Path) -> Iterator[VectorStore]:  # type: ignore[override]
        with SacVectorStore(library=tmp_path / "store.lib", config=tiny_config) as store:
            yield store


class TestDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, chat_config: Any, tmp_path: Path) -> Iterator[SacDocumentIndex]:  # type: ignore[override]
        with SacVectorStore(library=tmp_path / "index.lib", config=chat_config) as store:
            yield SacDocumentIndex(store=store)

    def test_it_retrieves_what_leads_to_memories(self, index: SacDocumentIndex) -> None:
        index.upsert(
            [Document(page_content="A heron waits.", id="1"), Document(page_content="A heron  waits.", id="2")]
        )
        (found,) = index.invoke("heron")
        assert ChatSac(rag=index.store.rag).reads(found.metadata["sac_tag"])


class TestAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, chat_config: Any, tmp_path: Path) -> AsyncIterator[SacDocumentIndex]:  # type: ignore[override]
        with SacVectorStore(library=tmp_path / "index.lib", config=chat_config) as store:
            yield SacDocumentIndex(store=store)
