"""One answer has one account in every shell: what was attended, of which cached memory, and what that stands for."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.llms.sac import SacLLM

from langchain_sac import ChatSac
from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling

from .llama_index_chat import chatting

NAMES = {"attended_tokens", "memory_tokens", "source_tokens", "completion_tokens", "reused_tokens"}
TOKENS = 6


@pytest.fixture
def rag(rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> SacRag:
    return chatting(rag, monkeypatch)


def of_langchain(message: Any) -> dict[str, int]:
    usage, metadata = message.usage_metadata, message.response_metadata
    account = {name: metadata[name] for name in NAMES}
    assert (
        usage["input_tokens"] == account["attended_tokens"] and usage["output_tokens"] == account["completion_tokens"]
    )
    assert usage["input_token_details"]["cache_read"] == account["memory_tokens"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    return account


def of_llama_index(response: Any) -> dict[str, int]:
    usage = response.raw["usage"]
    account = {name: usage[name] for name in NAMES}
    assert usage["prompt_tokens"] == account["attended_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == account["memory_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return account


async def test_every_shell_says_the_same(rag: SacRag) -> None:
    tags = "".join(rag.tag(p.id) for p in rag.library.passages())
    text = f"{tags}\nHow many miles does the Erie Canal span?"
    chat, llm = ChatSac(rag=rag, max_tokens=TOKENS), SacLLM(rag, max_tokens=TOKENS)
    reply = rag.reply([Message("user", rag.cite(text))], Sampling(TOKENS, min_new_tokens=1))
    list(reply)
    own = reply.usage.account()
    assert set(own) == NAMES and own["attended_tokens"] > own["memory_tokens"] > 0
    assert own["source_tokens"] == sum(p.tokens for p in rag.library.passages())
    said = [HumanMessage(text)]
    *_, last = chat.stream(said)
    *_, final = [chunk async for chunk in chat.astream(said)]
    messages = [ChatMessage(content=text)]
    *_, end = llm.stream_chat(messages)
    accounts = [
        of_langchain(chat.invoke(said)),
        of_langchain(await chat.ainvoke(said)),
        of_langchain(last),
        of_langchain(final),
        of_llama_index(llm.chat(messages)),
        of_llama_index(await llm.achat(messages)),
        of_llama_index(end),
        of_llama_index(llm.complete(text)),
    ]
    reused = [a.pop("reused_tokens") for a in accounts]
    own.pop("reused_tokens")
    assert accounts == [own] * len(accounts)
    assert all(0 < n < own["attended_tokens"] for n in reused), "they went on from what the first had read"


def test_counters_of_frameworks_count_what_was_attended(rag: SacRag) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    llm = SacLLM(rag, max_tokens=TOKENS, callback_manager=CallbackManager([counter]))
    usage = llm.chat([ChatMessage(content=rag.tag(rag.library.passages()[0].id) + " Why?")]).raw["usage"]  # type: ignore[index]
    assert counter.prompt_llm_token_count == usage["attended_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]
