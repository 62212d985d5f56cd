"""One answer of ChatSac: the settings of its call, and a reply as messages of LangChain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from sac_rag.records import told_of

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reader import Sampling
    from sac_rag.answer.reply import AsyncReply, Reply
    from sac_rag.answer.tools import Calling, Splitter, Tool


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
    evidence: int | None
    history: str
    small_talk: bool
    tools: tuple[Tool, ...] = ()
    choice: str = "auto"
    schema: Mapping[str, Any] | None = None
    """JSON schema of an answer that is no call."""


@dataclass(frozen=True)
class Asked:
    """A prompt that is ready to be answered."""

    rag: SacRag
    prompt: Prompt
    call: Call
    sampling: Sampling
    calling: Calling

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `SacRag.reply` beside the prompt."""
        call = self.call
        return {"sampling": self.sampling, "stop": call.stop, "timeout": call.timeout, "reader": call.reader}


def usage_of(reply: Reply | AsyncReply) -> UsageMetadata:
    """Input is what was attended; memory, which was computed long before, is its cached part."""
    usage = reply.usage
    return UsageMetadata(
        input_tokens=usage.attended,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.attended + usage.completion_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.anchors),
    )


def metadata_of(rag: SacRag, reply: Reply | AsyncReply, split: Splitter) -> dict[str, Any]:
    return {
        "model_name": model_name(rag),
        "model_provider": "sac",
        "finish_reason": _finish(reply, split),
        **reply.usage.account(),
        **told_of(reply.evidence),
        **({"notices": list(reply.notices)} if reply.notices else {}),
    }


def chunks_of(split: Splitter, piece: str | None) -> list[ChatGenerationChunk]:
    """What a piece of an answer, or its end (None), adds to the message."""
    found = split.flush() if piece is None else split.push(piece)
    return [ChatGenerationChunk(message=_chunk(part, split.id)) for part in found]


def _chunk(part: Any, call: str) -> AIMessageChunk:
    if isinstance(part, str):
        return AIMessageChunk(content=part)
    named = {"name": part.name, "id": call if part.name else None}
    return AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(**named, args=part.arguments, index=0)])


def last_of(rag: SacRag, reply: Reply | AsyncReply, split: Splitter) -> ChatGenerationChunk:
    """The chunk that ends a stream: no text, the whole account."""
    message = AIMessageChunk(
        content="",
        usage_metadata=usage_of(reply),
        response_metadata=metadata_of(rag, reply, split),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info={"finish_reason": _finish(reply, split)})


def result_of(rag: SacRag, reply: Reply | AsyncReply, split: Splitter) -> ChatResult:
    """A whole reply."""
    said = "".join(p for p in (*split.push(reply.text), *split.flush()) if isinstance(p, str))
    message = AIMessage(
        content=said,
        usage_metadata=usage_of(reply),
        response_metadata=metadata_of(rag, reply, split),
        **_calls(split),
    )
    info = {"finish_reason": _finish(reply, split)}
    return ChatResult(
        generations=[ChatGeneration(message=message, generation_info=info)], llm_output={"model_name": model_name(rag)}
    )


def _calls(split: Splitter) -> dict[str, Any]:
    """The call of an answer, as fields of its message."""
    if (call := split.call) is None:
        return {}
    try:
        return {"tool_calls": [tool_call(name=call.name, args=call.values, id=call.id)]}
    except ValueError as error:
        return {
            "invalid_tool_calls": [invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=str(error))]
        }


def _finish(reply: Reply | AsyncReply, split: Splitter) -> str:
    whole = split.call is not None and reply.finish_reason == "stop"
    return "tool_calls" if whole else reply.finish_reason


def model_name(rag: SacRag) -> str:
    """The base model's name; of a folder, its last part."""
    return Path(rag.model_name).name
