"""/v1/chat/completions: the last message is the question, the ones before it the conversation."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response, StreamingResponse

from sac_rag.serve import asking, errors
from sac_rag.serve.answering import Answering
from sac_rag.serve.asking import Asked, Lenient
from sac_rag.serve.body import StrictRoute
from sac_rag.serve.door import Door

router = APIRouter(route_class=StrictRoute)

IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls "
    "reasoning_effort verbosity top_k".split()
)
"""They change no answer of ours."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Values that ask for nothing."""


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: Any = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: bool = False


class ChatRequest(Lenient):
    """Settings of ours, and `where`, go into `sac`: {"sac": {"k": 3, "fidelity": "mixed", "where": {…}}}."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    sac: dict[str, Any] | None = None


@router.post("/v1/chat/completions", response_model=None)
async def completions(body: ChatRequest, request: Request) -> Response:
    """Answer the last message from the library that `model` names; errors and usage as OpenAI's."""
    body.check(IGNORED, NEUTRAL)
    door = Door.of(request)
    served = door.model(body.model)
    instructions, turns, question, forgotten = asking.conversation(body.messages)
    given = {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed, **(body.sac or {})}
    asked = asking.asked(
        served,
        door.key,
        door.limits,
        question=question,
        given=given,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        instructions=instructions,
        turns=turns,
        forgotten=forgotten,
        stop=asking.stops_of(body.stop),
    )
    answering = door.pool.answer(served.name, asked.begin)
    head = _Head(body.model, asked)
    if body.stream:
        counted = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(_events(head, answering, counted), media_type="text/event-stream")
    answer = await answering.whole(request)
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    usage = asking.usage_of(answer.usage, prompt="prompt", completion="completion")
    return JSONResponse(
        {**head.of("chat.completion"), "choices": [choice], "usage": usage, "sac": asked.account(answer)}
    )


class _Head:
    """What all chunks of one answer begin with."""

    def __init__(self, model: str, asked: Asked) -> None:
        self.model, self.asked = model, asked
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.fingerprint = asking.system_fingerprint(asked.served)

    def of(self, kind: str) -> dict[str, Any]:
        named = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**named, "system_fingerprint": self.fingerprint}

    def chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self.of("chat.completion.chunk"), "choices": [choice], **more})


async def _events(head: _Head, answering: Answering, usage: bool) -> AsyncIterator[bytes]:
    async with aclosing(answering):
        try:
            yield head.chunk({"role": "assistant", "content": ""})
            async for piece in answering:
                yield head.chunk({"content": piece})
            answer = answering.answer
            yield head.chunk({}, answer.finish_reason, sac=head.asked.account(answer))
            if usage:
                counted = asking.usage_of(answer.usage, prompt="prompt", completion="completion")
                yield event({**head.of("chat.completion.chunk"), "choices": [], "usage": counted})
        except Exception as error:  # the status is sent already
            yield event(errors.of(error).body)
        yield b"data: [DONE]\n\n"


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
