"""What several of these tests ask of messages and documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage

from langchain_sac import ChatSac, SacRetriever
from langchain_sac.messages import Scope, to_sac
from sac_rag import SacRag

QUESTION = "How many miles does the Erie Canal span?"


def read(chat: ChatSac, messages: Sequence[BaseMessage]) -> list[str]:
    """Ids of the passages that a model would read in these messages, in order."""
    scope = Scope(chat.opened(), (chat.where,), (chat.allowed_ids,))
    return [p.id for m in to_sac(messages, scope) for p in m.content if not isinstance(p, str)]


def found(rag: SacRag, k: int = 2) -> list[Document]:
    return SacRetriever(rag=rag, k=k).invoke(QUESTION)


def tags(documents: Sequence[Document]) -> list[str]:
    return [d.metadata["sac_tag"] for d in documents]


def ids(documents: Sequence[Document]) -> list[str]:
    return [d.metadata["sac_id"] for d in documents]


def usage(message: Any) -> tuple[int, int, int]:
    """(tokens read, memory slots among them, tokens written)."""
    u = message.usage_metadata
    return u["input_tokens"], u["input_token_details"]["cache_read"], u["output_tokens"]


def slots(rag: SacRag, passages: Sequence[str]) -> int:
    """Cache slots of these passages' memories in a prompt, and of the prefix in front of them."""
    assert rag.engine.method.prefix is not None
    return rag.engine.method.prefix.anchors + sum(a for a, _ in rag.extents(passages))
