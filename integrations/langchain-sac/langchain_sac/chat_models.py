"""The frozen model of a library as a chat model: tags in messages are read as the passages' memories."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field

from langchain_sac.formatting import warn_text
from langchain_sac.messages import Scope, asks, to_sac
from langchain_sac.opening import LibraryUser
from langchain_sac.writing import Asked, Call, chunks_of, last_of, model_name, result_of
from sac_rag.config import MAX_EVIDENCE

_TURN = 8
"""Tokens that a chat template puts around a message, at most, when messages are counted one by one."""


class ChatSac(LibraryUser, BaseChatModel):
    """Answers conversations in which tags (`sac_tag` of documents) or `{"type": "sac_kv", "id": …}` blocks stand for
    passages. Everything but rag, library, streaming and max_retries can also be given to one call.

    A tag that is forged, of another library, or out of scope stays text. Calls of all threads and tasks are answered
    as one batch, and a conversation's next turn reads only what is new. Tools and structured output (`bind_tools`,
    `with_structured_output`) are held to their schemas while an answer is decoded, which needs the extra `tools`.
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
    evidence: int | None = Field(default=None, ge=0, le=MAX_EVIDENCE)
    """Sentences of the passages in memory that are read as text beside it, those that fit the question; 0 are none,
    None is as what reads was trained."""
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
        names += ["where", "allowed_ids", "recall", "reader", "evidence", "history", "small_talk"]
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
        """Positions in the model's context: a passage counts with its source tokens, though fewer are read. Tools count
        as their JSON."""
        scope = self._scope(self._call(None, {}))
        parts = [p for m in to_sac(messages, scope) for p in m.content]
        texts = sum(len(self.get_token_ids(p)) for p in parts if isinstance(p, str))
        ids = list(dict.fromkeys(p.id for p in parts if not isinstance(p, str)))
        texts += sum(len(self.get_token_ids(json.dumps(convert_to_openai_tool(tool)))) for tool in tools or ())
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
        return result_of(asked.rag, reply, asked.calling.splitter())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._asked(messages, stop, kwargs)
        reply, split = asked.rag.reply(asked.prompt, **asked.settings), asked.calling.splitter()

        def chunks() -> Iterator[ChatGenerationChunk]:
            for piece in reply:
                yield from chunks_of(split, piece)
            yield from chunks_of(split, None)
            yield last_of(asked.rag, reply, split)

        try:
            for chunk in chunks():
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
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
            return result_of(asked.rag, reply, asked.calling.splitter())

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = await asyncio.to_thread(self._asked, messages, stop, kwargs)
        split = asked.calling.splitter()
        async with aclosing(await asked.rag.areply(asked.prompt, **asked.settings)) as reply:

            async def chunks() -> AsyncIterator[ChatGenerationChunk]:
                async for piece in reply:
                    for chunk in chunks_of(split, piece):
                        yield chunk
                for chunk in chunks_of(split, None):
                    yield chunk
                yield last_of(asked.rag, reply, split)

            async for chunk in chunks():
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # -- tools and structured output -----------------------------------------------------------------------

    def _resolve_model_profile(self) -> ModelProfile | None:
        # Of a library that is not open yet the length of the context is not known: making a component opens nothing.
        known: ModelProfile = {} if self.rag is None else {"max_input_tokens": self.rag.context_length}
        return {**known, "tool_calling": True, "tool_choice": True, "structured_output": True}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools, one of which it calls at a time, with arguments that fit the tool's schema.

        tool_choice: None or "auto": a model whose chat template knows tools chooses; any other, as the default one,
        calls a tool for each message of the user's and answers once it has the result. "any" (True, "required"): a
        tool is called; a name: that one; "none": none is. strict, parallel_tool_calls: taken, and without effect.
        kwargs: other settings of a call, `response_format` among them.
        """
        return super().bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=tool_choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model's answers as objects of a pydantic class, or as dicts of a TypedDict or a JSON schema.

        method: "json_schema" holds the answer to the schema; "function_calling" holds it to a call of a tool that the
        prompt describes; "json_mode" to any JSON object, which may not fit. include_raw: {"raw", "parsed",
        "parsing_error"}. strict: taken, and without effect: a schema is always kept to.
        """
        if kwargs:
            raise TypeError(f"with_structured_output takes no {', '.join(map(repr, kwargs))}")
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw)
        if method not in ("json_schema", "json_mode"):
            raise ValueError(f"method is {method!r}; use json_schema, function_calling or json_mode")
        plain = convert_to_json_schema(schema)
        form: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            form = {"type": "json_schema", "json_schema": {"name": plain.get("title", "answer"), "schema": plain}}
        told = {"kwargs": {"method": method}, "schema": plain}
        llm = self.bind(response_format=form, ls_structured_output_format=told)
        parser: BaseOutputParser[Any] = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _asked(self, messages: list[BaseMessage], stop: Sequence[str] | None, settings: dict[str, Any]) -> Asked:
        call = self._call(stop, settings)
        scope = self._scope(call)
        rag, said = scope.rag, to_sac(messages, scope)
        calling = rag.calling(said, call.tools, call.choice, call.schema)
        sampling = replace(call.sampling, constraint=calling.constraint)
        read: dict[str, Any] = {"history": call.history, "small_talk": call.small_talk}
        if messages and not asks(messages[-1]):  # the result of a tool is part of the question's turn
            read = {"history": "all", "small_talk": False}
        if call.recall and (altered := rag.altered(said, where=scope.where, among=scope.permits)):
            why = "they stand in the prompt cut off, in another form or long after their search"
            warn_text(altered, f"{why}: put in page_content as a search has just returned it")
            read["altered"] = altered
        read |= {"reader": call.reader, "evidence": call.evidence}
        prompt = rag.conversation(said, sampling, tools=calling.told, **read)
        return Asked(rag, prompt, call, sampling, calling)

    def _scope(self, call: Call) -> Scope:
        # Not at the newest generation at once: what the tags of a prompt stand for may be gone there.
        return Scope(self.opened(), call.wheres, call.allowed, follows=self._follows, recall=call.recall)

    def _call(self, stop: Sequence[str] | None, settings: dict[str, Any]) -> Call:
        """Settings of one call. Filters add to the model's own: a call cannot read what the model may not."""
        from sac_rag.answer.constrained import schema_of
        from sac_rag.answer.reader import Sampling
        from sac_rag.answer.tools import choice_of, tools_of

        given = dict(settings)
        given.pop("stream", None)
        tools, choice = tools_of(given.pop("tools", None) or ()), choice_of(given.pop("tool_choice", None))
        schema = schema_of(given.pop("response_format", None))
        wheres = (self.where, given.pop("where", None))
        allowed = (self.allowed_ids, given.pop("allowed_ids", None))
        stop = given.pop("stop", None) if stop is None else stop
        names = ["max_tokens", "temperature", "top_p", "seed", "timeout"]
        names += ["recall", "reader", "evidence", "history", "small_talk"]
        own = {n: given.pop(n, None) for n in names}
        if given:
            known = ", ".join((*own, "stop", "where", "allowed_ids", "tools", "tool_choice", "response_format"))
            raise TypeError(f"ChatSac was called with {', '.join(map(repr, given))}; a call takes {known}")
        chosen = (getattr(self, n) if v is None else v for n, v in own.items())
        tokens, temperature, top_p, seed, timeout, *how = chosen
        sampling = Sampling(tokens, temperature or 0.0, top_p, seed, min_new_tokens=1)
        stop = self.stop if stop is None else stop
        stop = [stop] if isinstance(stop, str) else stop
        held: tuple[Any, ...] = (tools, choice, schema)
        return Call(sampling, tuple(stop or ()), timeout, wheres, allowed, *how, *held)
