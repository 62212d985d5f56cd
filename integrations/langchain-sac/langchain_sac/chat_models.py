"""The frozen model of a library as a chat model: tags in messages are read as the passages' memories."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, NoReturn

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict

from langchain_sac.messages import Scope, asks, to_sac
from langchain_sac.opening import LibraryUser
from langchain_sac.writing import Asked, Call, chunk_of, last_of, model_name, result_of

_TURN = 8
"""Tokens that a chat template puts around a message, at most, when messages are counted one by one."""


class ChatSac(LibraryUser, BaseChatModel):
    """Answers conversations in which tags (`sac_tag` of documents) or `{"type": "sac_kv", "id": …}` blocks stand for
    passages. Everything but rag, library, streaming and max_retries can also be given to one call.

    A tag that is forged, of another library, or out of scope stays text. Calls of all threads and tasks are answered
    as one batch, and a conversation's next turn reads only what is new.
    """

    model_config = ConfigDict(extra="forbid")

    max_tokens: int = 256
    """Longest answer."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling mass, used when temperature > 0."""
    stop: list[str] | None = None
    """Strings that end an answer; they are not part of it."""
    seed: int | None = None
    """Seed of sampling; None draws afresh each time."""
    timeout: float | None = None
    """Seconds for a whole answer, looked at after every token; TimeoutError beyond."""
    max_retries: int = 0
    """Taken because chains pass it; a model in this process is not asked twice."""
    reader: Literal["base", "adapter"] = "base"
    """What reads memory: the model as it is, or with the adapter's own reader where it has one."""
    streaming: bool = False
    """Make `invoke` report token by token to callbacks."""
    where: dict[str, Any] | None = None
    """Metadata filter: only passages that fit may be read, whatever a call says. One per tenant keeps tenants apart.
    What a SacDocumentCompressor remembers fits by the compressor's `meta`."""
    recall: bool = True
    """Read passages as memory where their text stands in a prompt, if a SacRetriever, SacVectorStore or
    SacDocumentCompressor over the same library handed them out."""
    allowed_ids: list[str] | None = None
    """Only these passages may be read; None leaves it to `where`."""
    history: Literal["auto", "all"] = "auto"
    """Of a conversation in which passages come with the last message or the system's: "auto" reads the turns that the
    last one refers back to, none where it stands by itself; "all" reads all."""
    small_talk: bool = True
    """Answer greetings and thanks ("Hello", "Thanks!") without the passages that came with them."""

    @property
    def _llm_type(self) -> str:
        return "sac"

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_sac", "chat_models"]

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ["library", "max_tokens", "temperature", "top_p", "stop", "seed"]
        names += ["where", "allowed_ids", "recall", "reader", "history", "small_talk"]
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params.setdefault("ls_model_name", "sac" if self.rag is None else model_name(self.rag))
        return params

    def reads(self, tag: str, **settings: Any) -> bool:
        """Whether a tag, or several, would be read as memory, with these settings of a call; opens the library."""
        return self._scope(self._call(None, settings)).reads(tag)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the base model's tokenizer."""
        return self.opened().token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Positions in the model's context: a passage counts with its source tokens, though fewer are read."""
        scope = self._scope(self._call(None, {}))
        parts = [p for m in to_sac(messages, scope) for p in m.content]
        texts = sum(len(self.get_token_ids(p)) for p in parts if isinstance(p, str))
        ids = list(dict.fromkeys(p.id for p in parts if not isinstance(p, str)))
        return texts + sum(n for _, n in scope.rag.extents(ids)) + _TURN * len(messages)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._asked(messages, stop, kwargs)
        reply = asked.rag.reply(asked.prompt, **asked.settings)
        for _ in reply:
            pass
        return result_of(asked.rag, reply)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._asked(messages, stop, kwargs)
        reply = asked.rag.reply(asked.prompt, **asked.settings)
        try:
            for piece in reply:
                chunk = chunk_of(piece)
                if run_manager:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            last = last_of(asked.rag, reply)
            if run_manager:
                run_manager.on_llm_new_token(last.text, chunk=last)
            yield last
        finally:
            reply.cancel()

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # The first call imports torch, and any waits for the model between two tokens of others: not on the loop.
        asked = await asyncio.to_thread(self._asked, messages, stop, kwargs)
        async with aclosing(await asked.rag.areply(asked.prompt, **asked.settings)) as reply:
            async for _ in reply:
                pass
            return result_of(asked.rag, reply)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = await asyncio.to_thread(self._asked, messages, stop, kwargs)
        async with aclosing(await asked.rag.areply(asked.prompt, **asked.settings)) as reply:
            async for piece in reply:
                chunk = chunk_of(piece)
                if run_manager:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            last = last_of(asked.rag, reply)
            if run_manager:
                await run_manager.on_llm_new_token(last.text, chunk=last)
            yield last

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> NoReturn:
        """Raises NotImplementedError, which says what to do instead; so does `with_structured_output`."""
        raise NotImplementedError(
            "ChatSac calls no tools and keeps to no schema: let another model or code of yours call them, and give "
            "ChatSac the results (results of tools keep their tags: see SacDocumentPrompt)"
        )

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, settings: dict[str, Any]) -> Asked:
        call = self._call(stop, settings)
        scope = self._scope(call)
        said, settings = to_sac(messages, scope), {"history": call.history, "small_talk": call.small_talk}
        if messages and not asks(messages[-1]):  # the result of a tool is part of the question's turn
            settings = {"history": "all", "small_talk": False}
        return Asked(scope.rag, scope.rag.conversation(said, call.sampling, **settings), call)

    def _scope(self, call: Call) -> Scope:
        # Not at the newest generation at once: what the tags of a prompt stand for may be gone there.
        return Scope(self.opened(), call.wheres, call.allowed, follows=self._follows, recall=call.recall)

    def _call(self, stop: Sequence[str] | None, settings: dict[str, Any]) -> Call:
        """Settings of one call. Filters add to the model's own: a call cannot read what the model may not."""
        from sac_rag.answer.reader import Sampling

        given = dict(settings)
        given.pop("stream", None)
        wheres = (self.where, given.pop("where", None))
        allowed = (self.allowed_ids, given.pop("allowed_ids", None))
        stop = given.pop("stop", None) if stop is None else stop
        names = ("max_tokens", "temperature", "top_p", "seed", "timeout", "recall", "reader", "history", "small_talk")
        own = {n: given.pop(n, None) for n in names}
        if given:
            known = ", ".join((*own, "stop", "where", "allowed_ids"))
            raise TypeError(f"ChatSac was called with {', '.join(map(repr, given))}; a call takes {known}")
        chosen = (getattr(self, n) if v is None else v for n, v in own.items())
        tokens, temperature, top_p, seed, timeout, *how = chosen
        sampling = Sampling(tokens, temperature or 0.0, top_p, seed, min_new_tokens=1)
        stop = self.stop if stop is None else stop
        stop = [stop] if isinstance(stop, str) else stop
        return Call(sampling, tuple(stop or ()), timeout, wheres, allowed, *how)
