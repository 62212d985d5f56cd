"""The frozen Llama of a library as a LlamaIndex LLM: it reads tags as memory and everything else as text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.utils import parse_partial_json
from llama_index.llms.sac.packing import SacPromptHelper
from llama_index.llms.sac.tokens import SacTokenizer
from llama_index.schema.sac.opening import Source

from sac_rag.config import MAX_EVIDENCE
from sac_rag.errors import ConfigError
from sac_rag.library.filters import fitting
from sac_rag.records import told_of

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

    from sac_rag import SacRag
    from sac_rag.answer.chat import Message
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reply import AsyncReply, Reply
    from sac_rag.answer.tools import Splitter, ToolCall

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}
_CALL = ("max_tokens", "temperature", "top_p", "seed", "stop", "timeout", "reader", "evidence", "history", "small_talk")
"""Settings that a single call may change."""
_HELD = ("response_format",)
"""What any single call may be given besides."""
_TOOLS = ("tools", "tool_choice")
"""And a chat."""


class SacLLM(FunctionCallingLLM):
    """Answers from an open `sac_rag.SacRag`, or from `library="FOLDER"`, which is opened when it is first used.

    Passages that were handed out by a SacRetriever, SacVectorStore or SacNodePostprocessor over the same library are
    read as memory where their text stands in a message (unless recall=False), and so are tags; what `where` leaves out,
    edited text and forged tags stay text. A conversation's next turn goes on from what was read. Calls from any number
    of threads and tasks are answered as one batch; async methods never block the loop. A call may change max_tokens,
    temperature, top_p, seed, stop, timeout, reader, evidence, history and small_talk, and name a `response_format`.

    Calls of tools and structured predictions are held to their schemas while they are decoded, which needs the extra
    `tools` of sac-rag. One tool is called at a time. A model whose chat template knows no tools, as the default one,
    calls one for each message of the user's and answers once it has the result.
    """

    library: str | None = Field(default=None, description="Folder of the library.")
    max_tokens: int = Field(default=256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus mass, used when temperature > 0.")
    seed: int | None = Field(default=None, description="Seed of sampling; None draws afresh each time.")
    stop: list[str] = Field(default_factory=list, description="Texts that end an answer; left out of it.")
    recall: bool = Field(
        default=True, description="Whether passages that were handed out are read as memory where their text stands."
    )
    timeout: float | None = Field(default=None, description="Seconds for a whole answer; TimeoutError beyond.")
    reader: Literal["base", "adapter"] = Field(
        default="base", description="What reads memory: the model as it is, or with the adapter's own reader."
    )
    evidence: int | None = Field(
        default=None,
        ge=0,
        le=MAX_EVIDENCE,
        description="Sentences of the passages in memory that are read as text beside it, those that fit the question; "
        "0 are none, None is as what reads was trained.",
    )
    history: Literal["auto", "all"] = Field(
        default="auto",
        description="Which earlier turns are read where passages come with the last or a system message: those that "
        "it refers back to, or all.",
    )
    small_talk: bool = Field(
        default=True, description="Whether greetings and thanks are answered without the passages that came with them."
    )
    where: dict[str, Any] | None = Field(
        default=None, description="Metadata filter of the stored passages whose tags may be read."
    )

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | str | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
        if unknown := sorted(set(settings) - set(type(self).model_fields)):
            raise ConfigError(f"SacLLM takes no {unknown[0]!r}; it takes {', '.join(_CALL)} and where")
        fitting(settings.get("where"))
        super().__init__(library=source.name, **settings)
        self._source = source

    @classmethod
    def class_name(cls) -> str:
        return "SacLLM"

    @property
    def rag(self) -> SacRag:
        return self._source.rag

    def newest(self) -> SacRag:
        """`rag`, at the newest generation if it was opened here: what others index meanwhile is read."""
        return self._source.newest()

    @property
    def metadata(self) -> LLMMetadata:
        """Opens the library: the model knows how long its context is, and what the adapter's prefix takes of it."""
        rag = self._source.rag
        return LLMMetadata(
            context_window=rag.context_length - rag.prefix_tokens,
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=rag.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        # What callbacks are told at the start of every call, without opening anything.
        settings = {name: getattr(self, name) for name in _CALL}
        return {"class_name": self.class_name(), "library": self.library, **settings}

    def reads(self, text: str) -> bool:
        """Whether a text is tags and nothing else, and all of passages that this LLM may read."""
        parts = self.newest().cite(text, where=self.where)
        return not any(isinstance(p, str) and p.strip() for p in parts)

    @property
    def tokenizer(self) -> SacTokenizer:
        """For `Settings.tokenizer`."""
        return SacTokenizer(self._source, self.where)

    def prompt_helper(self) -> PromptHelper:
        """For `Settings.prompt_helper`: packs whole passages into prompts, by the positions that they take up."""
        return SacPromptHelper.from_llm_metadata(self.metadata, chunk_overlap_ratio=0.0, tokenizer=self.tokenizer)

    # -- chat --------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        asked = self._begin(messages, kwargs, (*_HELD, *_TOOLS))
        return _answered(asked.split, *_whole(self._pieces(asked)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def gen() -> ChatResponseGen:
            asked, text = self._begin(messages, kwargs, (*_HELD, *_TOOLS)), ""
            for piece, usage in self._pieces(asked):
                said, more = _said(asked.split, piece, usage)
                text += said
                if more:
                    yield _chat(text, usage, said, asked.split.call)

        return gen()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        asked = await asyncio.to_thread(self._begin, messages, kwargs, (*_HELD, *_TOOLS))
        return _answered(asked.split, *_whole([p async for p in self._apieces(asked)]))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def gen() -> ChatResponseAsyncGen:
            asked, text = await asyncio.to_thread(self._begin, messages, kwargs, (*_HELD, *_TOOLS)), ""
            async with aclosing(self._apieces(asked)) as pieces:
                async for piece, usage in pieces:
                    said, more = _said(asked.split, piece, usage)
                    text += said
                    if more:
                        yield _chat(text, usage, said, asked.split.call)

        return gen()

    # -- tools -------------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            asked = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
            messages.append(asked)
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": tool_choice or ("any" if tool_required else "auto"),
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer, of which there is one at most; of one that is still written, what is there."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the model called no tool; it said: {response.message.content!r}")
        return [
            ToolSelection(tool_id=c.tool_call_id or "", tool_name=c.tool_name, tool_kwargs=_values(c.tool_kwargs))
            for c in calls
        ]

    # -- completion: the prompt is a user message ----------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _completion(*_whole(self._pieces(self._begin(self._asked(prompt, formatted), kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def gen() -> CompletionResponseGen:
            text = ""
            for piece, usage in self._pieces(self._begin(self._asked(prompt, formatted), kwargs)):
                text += piece
                yield _completion(text, usage, piece)

        return gen()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        asked = await asyncio.to_thread(self._begin, self._asked(prompt, formatted), kwargs)
        return _completion(*_whole([p async for p in self._apieces(asked)]))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def gen() -> CompletionResponseAsyncGen:
            asked, text = await asyncio.to_thread(self._begin, self._asked(prompt, formatted), kwargs), ""
            async with aclosing(self._apieces(asked)) as pieces:
                async for piece, usage in pieces:
                    text += piece
                    yield _completion(text, usage, piece)

        return gen()

    # -- one answer --------------------------------------------------------------------------------------

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _begin(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any], known: Sequence[str] = _HELD) -> _Begun:
        """Who answers which prompt, and how. known: what the call may be given beside its settings."""
        from sac_rag.answer.constrained import schema_of
        from sac_rag.answer.reader import Sampling
        from sac_rag.answer.tools import choice_of, tools_of

        if unknown := sorted(set(kwargs) - {*_CALL, *known}):
            raise ConfigError(f"SacLLM takes no {unknown[0]!r}; a call may set {', '.join((*_CALL, *known))}")
        chosen = {name: kwargs[name] if kwargs.get(name) is not None else getattr(self, name) for name in _CALL}
        rag = self.newest()
        said = self._messages(rag, messages)
        tools, choice = tools_of(kwargs.get("tools") or ()), choice_of(kwargs.get("tool_choice"))
        calling = rag.calling(said, tools, choice, schema_of(kwargs.get("response_format")))
        sampling = Sampling(
            max_new_tokens=chosen["max_tokens"],
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            seed=chosen["seed"],
            min_new_tokens=1,
            constraint=calling.constraint,
        )
        read = {name: chosen[name] for name in ("history", "small_talk", "reader", "evidence")}
        read["altered"] = rag.altered(said, where=self.where) if self.recall else 0
        prompt = rag.conversation(said, sampling, tools=calling.told, **read)
        settings = {"sampling": sampling, **{name: chosen[name] for name in ("stop", "timeout", "reader")}}
        return _Begun(rag, prompt, settings, calling.splitter())

    def _messages(self, rag: SacRag, messages: Sequence[ChatMessage]) -> list[Message]:
        calls = [b for m in messages for b in m.blocks if isinstance(b, ToolCallBlock)]
        names = {c.tool_call_id: c.tool_name for c in calls if c.tool_call_id}
        return [self._message(rag, m, names) for m in messages]

    def _message(self, rag: SacRag, message: ChatMessage, names: Mapping[str, str] | None = None) -> Message:
        from sac_rag.answer.chat import Message
        from sac_rag.answer.tools import ToolCall

        calls = []
        for block in message.blocks:
            if isinstance(block, ToolCallBlock):
                given = block.tool_kwargs
                arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
                calls.append(ToolCall(block.tool_name, arguments, block.tool_call_id or ""))
            elif not isinstance(block, TextBlock):
                raise ConfigError(f"SacLLM reads text; a message holds a {type(block).__name__}: leave it out")
        role = _ROLES.get(message.role, message.role.value)
        read = rag.recall if self.recall else rag.cite
        call = str(message.additional_kwargs.get("tool_call_id") or "")
        name = str(message.additional_kwargs.get("name") or (names or {}).get(call, ""))
        return Message(role, read(message.content or "", where=self.where), tuple(calls), name, call)

    def _pieces(self, asked: _Begun) -> Iterator[_Piece]:
        reply = asked.rag.reply(asked.prompt, **asked.settings)
        try:
            for piece in reply:
                yield piece, None
        finally:
            reply.cancel()
        yield "", _usage(reply)

    async def _apieces(self, asked: _Begun) -> AsyncGenerator[_Piece, None]:
        async with aclosing(await asked.rag.areply(asked.prompt, **asked.settings)) as reply:
            async for piece in reply:
                yield piece, None
        yield "", _usage(reply)


@dataclass(frozen=True)
class _Begun:
    """A prompt that is ready to be answered. settings: arguments of `SacRag.reply`."""

    rag: SacRag
    prompt: Prompt
    settings: dict[str, Any]
    split: Splitter


_Piece = tuple[str, dict[str, Any] | None]
"""Text, and at the end what was read and written."""


def _usage(reply: Reply | AsyncReply) -> dict[str, Any]:
    """Counts as other models name them, memory being the cached part of a prompt, and as all of sac-rag does;
    "evidence" and "notices" where there are any."""
    usage = reply.usage
    return {
        "prompt_tokens": usage.attended,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.attended + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.anchors},
        **usage.account(),
        **told_of(reply.evidence),
        **({"notices": list(reply.notices)} if reply.notices else {}),
    }


def _whole(pieces: Any) -> _Piece:
    """All pieces as one."""
    found = list(pieces)
    return "".join(text for text, _ in found), found[-1][1]


def _said(split: Splitter, piece: str, usage: dict[str, Any] | None) -> tuple[str, bool]:
    """What a piece adds to the text, and whether it adds anything at all; at the end, with `usage`, the rest."""
    parts = [*split.push(piece), *(() if usage is None else split.flush())]
    return "".join(p for p in parts if isinstance(p, str)), bool(parts) or usage is not None


def _answered(split: Splitter, text: str, usage: dict[str, Any] | None) -> ChatResponse:
    said, _ = _said(split, text, usage)
    return _chat(said, usage, call=split.call)


def _chat(
    text: str, usage: dict[str, Any] | None, delta: str | None = None, call: ToolCall | None = None
) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    if call is not None:
        # Streams of structured objects look for the second.
        message.blocks.append(ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments))
        function = {"name": call.name, "arguments": call.arguments}
        message.additional_kwargs["tool_calls"] = [{"id": call.id, "type": "function", "function": function}]
    return ChatResponse(message=message, delta=delta, raw=_raw(usage), additional_kwargs=usage or {})


def _values(given: dict[str, Any] | str) -> dict[str, Any]:
    """Arguments of a call; of JSON that is still written, what can be read of it."""
    if not isinstance(given, str):
        return given
    try:
        found = parse_partial_json(given)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _completion(text: str, usage: dict[str, Any] | None, delta: str | None = None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=_raw(usage), additional_kwargs=usage or {})


def _raw(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if usage is None else {"usage": usage}
