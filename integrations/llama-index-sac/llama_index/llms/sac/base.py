"""The frozen Llama of a library as a LlamaIndex LLM: it reads tags as memory and everything else as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
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
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.sac.packing import SacPromptHelper
from llama_index.llms.sac.tokens import SacTokenizer
from llama_index.schema.sac.opening import Source

from sac_rag.errors import ConfigError
from sac_rag.library.filters import fitting

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.chat import Message
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reply import AsyncReply, Reply

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_CALL = ("max_tokens", "temperature", "top_p", "seed", "stop", "timeout", "reader", "history", "small_talk")
"""Settings that a single call may change."""


class SacLLM(CustomLLM):
    """Answers from an open `sac_rag.SacRag`, or from `library="FOLDER"`, which is opened when it is first used.

    Passages that were handed out by a SacRetriever, SacVectorStore or SacNodePostprocessor over the same library are
    read as memory where their text stands in a message (unless recall=False), and so are tags; what `where` leaves out,
    edited text and forged tags stay text. A conversation's next turn goes on from what was read. Calls from any number
    of threads and tasks are answered as one batch; async methods never block the loop. A call may change max_tokens,
    temperature, top_p, seed, stop, timeout, reader, history and small_talk.
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
        return _chat(*_whole(self._pieces(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        def gen() -> ChatResponseGen:
            text = ""
            for piece, usage in self._pieces(messages, kwargs):
                text += piece
                yield _chat(text, usage, piece)

        return gen()

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _chat(*_whole([p async for p in self._apieces(messages, kwargs)]))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def gen() -> ChatResponseAsyncGen:
            text = ""
            async with aclosing(self._apieces(messages, kwargs)) as pieces:
                async for piece, usage in pieces:
                    text += piece
                    yield _chat(text, usage, piece)

        return gen()

    # -- completion: the prompt is a user message ----------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _completion(*_whole(self._pieces(self._asked(prompt, formatted), kwargs)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        def gen() -> CompletionResponseGen:
            text = ""
            for piece, usage in self._pieces(self._asked(prompt, formatted), kwargs):
                text += piece
                yield _completion(text, usage, piece)

        return gen()

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _completion(*_whole([p async for p in self._apieces(self._asked(prompt, formatted), kwargs)]))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        async def gen() -> CompletionResponseAsyncGen:
            text = ""
            async with aclosing(self._apieces(self._asked(prompt, formatted), kwargs)) as pieces:
                async for piece, usage in pieces:
                    text += piece
                    yield _completion(text, usage, piece)

        return gen()

    # -- one answer --------------------------------------------------------------------------------------

    def _asked(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    def _begin(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> tuple[SacRag, Prompt, dict[str, Any]]:
        """Who answers which prompt, and how: arguments of `SacRag.reply`."""
        from sac_rag.answer.reader import Sampling

        if unknown := sorted(set(kwargs) - set(_CALL)):
            raise ConfigError(f"SacLLM takes no {unknown[0]!r}; a call may set {', '.join(_CALL)}")
        chosen = {name: kwargs[name] if kwargs.get(name) is not None else getattr(self, name) for name in _CALL}
        rag = self.newest()
        sampling = Sampling(
            max_new_tokens=chosen["max_tokens"],
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            seed=chosen["seed"],
            min_new_tokens=1,
        )
        read = {name: chosen[name] for name in ("history", "small_talk")}
        prompt = rag.conversation([self._message(rag, m) for m in messages], sampling, **read)
        return rag, prompt, {"sampling": sampling, **{name: chosen[name] for name in ("stop", "timeout", "reader")}}

    def _message(self, rag: SacRag, message: ChatMessage) -> Message:
        from sac_rag.answer.chat import Message

        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise ConfigError(f"SacLLM reads text; a message holds a {type(block).__name__}: leave it out")
        role = _ROLES.get(message.role, message.role.value)
        read = rag.recall if self.recall else rag.cite
        return Message(role, read(message.content or "", where=self.where))

    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Iterator[_Piece]:
        rag, prompt, settings = self._begin(messages, kwargs)
        reply = rag.reply(prompt, **settings)
        try:
            for piece in reply:
                yield piece, None
        finally:
            reply.cancel()
        yield "", _usage(reply)

    async def _apieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> AsyncGenerator[_Piece, None]:
        rag, prompt, settings = await asyncio.to_thread(self._begin, messages, kwargs)
        async with aclosing(await rag.areply(prompt, **settings)) as reply:
            async for piece in reply:
                yield piece, None
        yield "", _usage(reply)


_Piece = tuple[str, dict[str, Any] | None]
"""Text, and at the end what was read and written."""


def _usage(reply: Reply | AsyncReply) -> dict[str, Any]:
    """Counts as other models name them, memory being the cached part of a prompt, and as all of sac-rag does; "notices"
    where there are any."""
    usage = reply.usage
    return {
        "prompt_tokens": usage.attended,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.attended + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.anchors},
        **usage.account(),
        **({"notices": list(reply.notices)} if reply.notices else {}),
    }


def _whole(pieces: Any) -> _Piece:
    """All pieces as one."""
    found = list(pieces)
    return "".join(text for text, _ in found), found[-1][1]


def _chat(text: str, usage: dict[str, Any] | None, delta: str | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta, raw=_raw(usage), additional_kwargs=usage or {})


def _completion(text: str, usage: dict[str, Any] | None, delta: str | None = None) -> CompletionResponse:
    return CompletionResponse(text=text, delta=delta, raw=_raw(usage), additional_kwargs=usage or {})


def _raw(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if usage is None else {"usage": usage}
