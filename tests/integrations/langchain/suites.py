"""The standard suites of langchain-tests over `self.opened`, an open SacRag with three documents or more."""

from __future__ import annotations

from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
)

from langchain_sac import ChatSac, SacEmbeddings, SacRetriever


class ChatModelSuite(ChatModelIntegrationTests):
    opened: Any

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSac

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"rag": self.opened}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # The shortest call of the suite's tools takes a tiny model, whose tokens are bytes, 90.
        return {**super().standard_chat_model_params, "max_tokens": 96}

    @property
    def supported_usage_metadata_details(self) -> dict[str, Any]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> Any:
        (found,) = SacRetriever(rag=self.opened, k=1).invoke("How long is the canal?")
        model = ChatSac(rag=self.opened, max_tokens=8)
        text = f"{found.metadata['sac_tag']}\nHow long is the canal?"
        if not stream:
            return model.invoke(text)
        full = None
        for chunk in model.stream(text):
            full = chunk if full is None else full + chunk
        return full


class RetrieverSuite(RetrieversIntegrationTests):
    opened: Any

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SacRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"rag": self.opened, "k": 2}

    @property
    def retriever_query_example(self) -> str:
        return "Who crossed the bridge?"


class EmbeddingsSuite(EmbeddingsIntegrationTests):
    opened: Any

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SacEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"rag": self.opened}
