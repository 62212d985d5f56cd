"""Two tenants in one library through both integrations: neither reads the other's passages, however it asks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.llms.sac import SacLLM
from llama_index.retrievers.sac import SacRetriever as SacNodeRetriever
from llama_index.vector_stores.sac import SacVectorStore as SacNodeStore

from langchain_sac import ChatSac, SacRetriever, SacVectorStore
from langchain_sac.messages import Scope, to_sac
from sac_rag import SacRag
from sac_rag.answer.prompt import Recall
from sac_rag.errors import ConfigError, LibraryError
from sac_rag.records import Document
from tests.reliability.parts import Found
from tests.reliability.small import config, models, sentences

REQUESTS, SHORT = 400, 28
DOCUMENTS = 12
TENANTS = ("a", "b")
Way = Callable[[Any], Iterable[str]]
"""(a request's case) -> ids of passages that it reads or is shown"""


class Case:
    """What one tenant knows of a passage of the other's: all of it."""

    def __init__(self, rag: SacRag, rng: random.Random, mine: str, theirs: str) -> None:
        self.rag, self.rng = rag, rng
        self.where = {"tenant": mine}
        self.passage = rng.choice([p for p in rag.library.passages() if p.document.startswith(f"{theirs}/")])
        self.id, self.text = self.passage.id, self.passage.text
        self.tag = rag.tag(self.id)
        self.k = rng.randrange(1, 30)


def _prompted(rag: SacRag, llm: SacLLM, messages: list[ChatMessage]) -> list[str]:
    """Passages that a message of LlamaIndex becomes for the model."""
    content = [llm._message(rag, m) for m in messages]
    return [p.id for m in content for p in m.content if not isinstance(p, str)]


def _read(chat: ChatSac, message: str | list[Any], **call: Any) -> list[str]:
    scope = Scope(
        chat.opened(), (chat.where, call.get("where")), (chat.allowed_ids, call.get("allowed_ids")), recall=True
    )
    messages = to_sac([HumanMessage(message)], scope)  # type: ignore[arg-type]
    prompt = chat.opened().conversation(messages)
    recalled = [i for p in prompt.parts if isinstance(p, Recall) for i in p.key[1]]  # type: ignore[index]
    return [*recalled, *(p.id for m in messages for p in m.content if not isinstance(p, str))]


def _block(c: Case) -> list[str]:
    chat = ChatSac(rag=c.rag, where=c.where)
    try:
        return _read(chat, [{"type": "sac_kv", "id": c.id}])
    except (ConfigError, LibraryError):
        return []


WAYS: dict[str, Way] = {
    "langchain search": lambda c: [
        d.metadata["sac_id"] for d in SacRetriever(rag=c.rag, k=c.k, where=c.where).invoke(c.text)
    ],
    "langchain wider": lambda c: [
        d.metadata["sac_id"]
        for d in SacRetriever(rag=c.rag, k=c.k, where=c.where).invoke(c.text, where={"tenant": {"$in": list(TENANTS)}})
    ],
    "langchain store": lambda c: [
        d.metadata["sac_id"]
        for d in SacVectorStore(rag=c.rag).as_retriever(search_kwargs={"k": c.k, "filter": c.where}).invoke(c.text)
    ],
    "langchain tag": lambda c: _read(ChatSac(rag=c.rag, where=c.where), f"Read {c.tag} and {c.tag}."),
    "langchain tag, wider call": lambda c: _read(
        ChatSac(rag=c.rag, where=c.where), c.tag, where={"tenant": {"$ne": "nobody"}}, allowed_ids=[c.id]
    ),
    "langchain text": lambda c: _read(ChatSac(rag=c.rag, where=c.where), f"Context:\n{c.text}\n\nWhat is said?"),
    "langchain block": _block,
    "llama-index search": lambda c: [
        n.node.node_id for n in SacNodeRetriever(c.rag, k=c.k, where=c.where).retrieve(c.text)
    ],
    "llama-index filters": lambda c: [
        n.node.node_id
        for n in SacNodeRetriever(
            c.rag, k=c.k, filters=MetadataFilters(filters=[MetadataFilter(key="tenant", value=c.where["tenant"])])
        ).retrieve(c.text)
    ],
    "llama-index store": lambda c: (
        SacNodeStore(c.rag)
        .query(
            VectorStoreQuery(
                query_str=c.text,
                similarity_top_k=c.k,
                filters=MetadataFilters(filters=[MetadataFilter(key="tenant", value=c.where["tenant"])]),
            )
        )
        .ids
        or []
    ),
    "llama-index tag": lambda c: _prompted(
        c.rag, SacLLM(c.rag, where=c.where), [ChatMessage(role="user", content=f"Read {c.tag}.")]
    ),
    "llama-index text": lambda c: _prompted(
        c.rag, SacLLM(c.rag, where=c.where), [ChatMessage(role="user", content=f"Context:\n{c.text}\n\nWhat?")]
    ),
    "remembered": lambda c: [
        p.id
        for p in c.rag.cite(
            c.rag.tag(c.rag.remember([c.text], meta={"tenant": c.passage.meta.get("tenant", "other")})[0]),
            where=c.where,
        )
        if not isinstance(p, str)
    ],
    "own answer": lambda c: [h.passage.id for h in c.rag.retrieve(c.text, where=c.where)],
}
"""Ways to ask, by name."""


def piece(place: Path, number: int, short: bool) -> Found:
    found, toys, rng = Found(), models(place / "models"), random.Random(f"tenants {number}")
    with SacRag.open(place / "a.lib", config=config(toys), write=True, create=True, dtype="float32") as rag:
        rag.put(
            [
                Document(f"{tenant}/{n}", sentences(f"{tenant} {n}"), meta={"tenant": tenant})
                for tenant in TENANTS
                for n in range(DOCUMENTS)
            ]
        )
        owner = {p.id: p.document[0] for p in rag.library.passages()}
        for p in rag.library.passages():  # both have been handed out as text before
            rag.offer(p.text, rag.tag(p.id))
        own = 0
        for n in range(SHORT if short else REQUESTS):
            mine, theirs = TENANTS if rng.random() < 0.5 else TENANTS[::-1]
            case, name = Case(rag, rng, mine, theirs), list(WAYS)[n % len(WAYS)]
            try:
                seen = list(WAYS[name](case))
            except Exception as error:
                found.bad.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
                continue
            leaked = [i for i in seen if owner.get(i, theirs) != mine]
            own += len(seen) - len(leaked)
            found.counts["requests"] += 1
            found.check(not leaked, f"{name}: {mine} is given {leaked[:2]} of {theirs}")
        found.check(own > 0, "no request found anything of its own")
        found.counts["own_passages"] += own
    return found
