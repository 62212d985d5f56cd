"""One answer of ChatSac: the settings of its call, and a reply as messages of LangChain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reader import Sampling
    from sac_rag.answer.reply import AsyncReply, Reply


@dataclass(frozen=True)
class Call:
    """Settings of one call."""

    sampling: Sampling
    stop: tuple[str, ...]
    timeout: float | None
    wheres: tuple[dict[str, Any] | None, ...]
    allowed: tuple[Sequence[str] | None, ...]
    recall: bool
    reader: str
    history: str
    small_talk: bool


@dataclass(frozen=True)
class Asked:
    """A prompt that is ready to be answered."""

    rag: SacRag
    prompt: Prompt
    call: Call

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `SacRag.reply` beside the prompt."""
        call = self.call
        return {"sampling": call.sampling, "stop": call.stop, "timeout": call.timeout, "reader": call.reader}


def usage_of(reply: Reply | AsyncReply) -> UsageMetadata:
    """Input is what was attended; memory, which was computed long before, is its cached part."""
    usage = reply.usage
    return UsageMetadata(
        input_tokens=usage.attended,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.attended + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.anchors),
    )


def metadata_of(rag: SacRag, reply: Reply | AsyncReply) -> dict[str, Any]:
    return {
        "model_name": model_name(rag),
        "model_provider": "sac",
        "finish_reason": reply.finish_reason,
        **reply.usage.account(),
        **({"notices": list(reply.notices)} if reply.notices else {}),
    }


def chunk_of(piece: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=piece))


def last_of(rag: SacRag, reply: Reply | AsyncReply) -> ChatGenerationChunk:
    """The chunk that ends a stream: no text, the whole account."""
    message = AIMessageChunk(
        content="",
        usage_metadata=usage_of(reply),
        response_metadata=metadata_of(rag, reply),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": reply.finish_reason})


def result_of(rag: SacRag, reply: Reply | AsyncReply) -> ChatResult:
    """A whole reply."""
    message = AIMessage(content=reply.text, usage_metadata=usage_of(reply), response_metadata=metadata_of(rag, reply))
    info = {"finish_reason": reply.finish_reason}
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=info)], llm_output={"model_name": model_name(rag)}
    )


def model_name(rag: SacRag) -> str:
    """The base model's name; of a folder, its last part."""
    return Path(rag.model_name).name
