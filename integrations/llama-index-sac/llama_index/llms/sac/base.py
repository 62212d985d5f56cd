"""The frozen Llama of a library as a LlamaIndex LLM: it reads tags as memory and everything else as text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
from llama_index.llms.sac.tokens import SacTokenizer
from llama_index.schema.sac.opening import Source

from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.chat import Message
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reader import Sampling, TextStream

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}
_SAMPLING = ("max_tokens", "temperature", "top_p", "seed", "stop")
"""Settings that a single call may change."""


class SacLLM(CustomLLM):
    """Answers from an open `sac_rag.SacRag`, or from `library="FOLDER"`, which is opened when it is first used.

    Tags of the library's passages, wherever they stand in a message, are read as memory; unknown and forged ones stay
    text. A conversation's next turn goes on from what was read. Calls from any number of threads and tasks are answered
    as one batch; async methods never block the loop. A call may change max_tokens, temperature, top_p, seed and stop.
    """

    library: str | None = Field(default=None, description="Folder of the library.")
    max_tokens: int = Field(default=256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus mass, used when temperature > 0.")
    seed: int | None = Field(default=None, description="Seed of sampling; None draws afresh each time.")
    stop: list[str] = Field(default_factory=list, description="Texts that end an answer; left out of it.")
    where: dict[str, Any] | None = Field(
        default=None, description="Metadata filter of the stored passages whose tags may be read."
    )

    _source: Source = PrivateAttr()

    def __init__(self, rag: SacRag | None = None, *, library: str | None = None, **settings: Any) -> None:
        source = Source(rag, library)
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
        engine = self._source.rag.engine
        prefix = engine.method.prefix
        return LLMMetadata(
            context_window=engine.method.backbone.context_length - (prefix.source_len if prefix else 0),
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=engine.model_name,
        )

    def to_payload(self) -> dict[str, Any]:
        # What callbacks are told at the start of every call, without opening anything.
        settings = {name: getattr(self, name) for name in _SAMPLING}
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
        """For `Settings.prompt_helper`: packs prompts by what tags take up, and repeats none between two prompts."""
        return PromptHelper.from_llm_metadata(self.metadata, chunk_overlap_ratio=0.0, tokenizer=self.tokenizer)

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

    def _begin(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> _Answering:
        from sac_rag.answer.reader import Sampling, TextStream

        if unknown := sorted(set(kwargs) - set(_SAMPLING)):
            raise ConfigError(f"SacLLM takes no {unknown[0]!r}; a call may set {', '.join(_SAMPLING)}")
        chosen = {name: kwargs[name] if kwargs.get(name) is not None else getattr(self, name) for name in _SAMPLING}
        stop = [chosen["stop"]] if isinstance(chosen["stop"], str) else list(chosen["stop"])
        rag = self.newest()
        sampling = Sampling(
            max_new_tokens=chosen["max_tokens"],
            temperature=chosen["temperature"],
            top_p=chosen["top_p"],
            seed=chosen["seed"],
            min_new_tokens=1,
        )
        prompt = rag.conversation([self._message(rag, m) for m in messages], sampling)
        return _Answering(rag, prompt, sampling, TextStream(rag.engine.method.backbone, stop))

    def _message(self, rag: SacRag, message: ChatMessage) -> Message:
        from sac_rag.answer.chat import Message

        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise ConfigError(f"SacLLM reads text; a message holds a {type(block).__name__}: leave it out")
        role = _ROLES.get(message.role, message.role.value)
        return Message(role, rag.cite(message.content or "", where=self.where))

    def _pieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Iterator[_Piece]:
        a = self._begin(messages, kwargs)
        generation = a.rag.engine.service.submit(a.prompt, a.sampling, keep=True)
        for token in generation:
            if piece := a.push(token):
                yield piece, None
            if a.text.stopped:
                generation.cancel()
                break
        yield a.text.flush(), a.usage(generation.reused)

    async def _apieces(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> AsyncGenerator[_Piece, None]:
        a = await asyncio.to_thread(self._begin, messages, kwargs)
        generation = a.rag.engine.service.stream(a.prompt, a.sampling, keep=True)
        try:
            async for token in generation:
                if piece := a.push(token):
                    yield piece, None
                if a.text.stopped:
                    break
        finally:
            generation.cancel()
        yield a.text.flush(), a.usage(generation.reused)


_Piece = tuple[str, dict[str, Any] | None]
"""Text, and at the end what was read and written."""


@dataclass
class _Answering:
    """An answer under way."""

    rag: SacRag
    prompt: Prompt
    sampling: Sampling
    text: TextStream
    written: int = 0

    def push(self, token: int) -> str:
        self.written += 1
        return self.text.push(token)

    def usage(self, reused: int) -> dict[str, Any]:
        """Counts, named as other models name them. reused: cache slots that an earlier turn had read already."""
        p = self.prompt
        return {
            "prompt_tokens": p.tokens,
            "completion_tokens": self.written,
            "total_tokens": p.tokens + self.written,
            "anchors": p.slots,
            "source_tokens": p.source_tokens,
            "reused": reused,
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
