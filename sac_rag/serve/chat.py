"""/v1/chat/completions: the last message is the question, the ones before it the conversation."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response, StreamingResponse

from sac_rag.records import NO_ANSWER, Answer
from sac_rag.serve import asking, errors
from sac_rag.serve.answering import Answering
from sac_rag.serve.asking import Asked, Lenient
from sac_rag.serve.body import StrictRoute
from sac_rag.serve.door import Door
from sac_rag.serve.tools import AskedWithTools, Said, Wanted

if TYPE_CHECKING:
    from sac_rag.answer.tools import CallDelta, Splitter

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
    "modalities": (["text"],),
}
"""Values that ask for nothing."""


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: str
    content: Any = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def said(self) -> Said:
        calls = tuple(_call(c) for c in self.tool_calls or ())
        return Said(self.role, self.content, calls, self.tool_call_id or "")


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
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: Any = None
    sac: dict[str, Any] | None = None


@router.post("/v1/chat/completions", response_model=None)
async def completions(body: ChatRequest, request: Request) -> Response:
    """Answer the last message from the library that `model` names; errors and usage as OpenAI's."""
    body.check(IGNORED, NEUTRAL)
    door = Door.of(request)
    served = door.model(body.model)
    asked = await Wanted(
        [m.said() for m in body.messages],
        body.tools,
        body.tool_choice,
        body.response_format,
        {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed},
        body.sac,
        body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        asking.stops_of(body.stop),
    ).asked(door, served)
    answering = door.answer(asked, body.model, stream=body.stream)
    head = _Head(body.model, asked)
    if body.stream:
        counted = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(_events(head, answering, counted), media_type="text/event-stream")
    answer = await answering.whole(request)
    message, finish = _message(asked, answer)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    usage = asking.usage_of(answer.usage, prompt="prompt", completion="completion")
    return JSONResponse(
        {**head.of("chat.completion"), "choices": [choice], "usage": usage, "sac": asked.account(answer)}
    )


def _call(given: dict[str, Any]) -> tuple[str, str, str]:
    """(id, name, arguments) of a call in a message. ApiError 400 for what is none."""
    function = given.get("function")
    if given.get("type", "function") != "function" or not isinstance(function, dict):
        raise errors.ApiError(400, "unsupported_content", "a tool call is not one of a function", param="messages")
    return str(given.get("id") or ""), str(function.get("name") or ""), str(function.get("arguments") or "{}")


def _message(asked: Asked | AskedWithTools, answer: Answer) -> tuple[dict[str, Any], str]:
    """(message, finish reason) of a whole answer."""
    split = asked.splitter()
    said = "".join(p for p in (*split.push(answer.text), *split.flush()) if isinstance(p, str))
    refused = asked.schema is not None and answer.abstained
    message: dict[str, Any] = {"role": "assistant", "content": None if refused else said}
    message["refusal"] = said if refused else None
    if split.call is None:
        return message, answer.finish_reason
    function = {"name": split.call.name, "arguments": split.call.arguments}
    message |= {"content": said or None, "tool_calls": [{"id": split.id, "type": "function", "function": function}]}
    return message, finish_reason(split, answer)


def finish_reason(split: Splitter, answer: Answer) -> str:
    """ "tool_calls" for a whole call."""
    return "tool_calls" if split.call is not None and answer.finish_reason == "stop" else answer.finish_reason


class _Head:
    """What all chunks of one answer begin with."""

    def __init__(self, model: str, asked: Asked | AskedWithTools) -> None:
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
            split = head.asked.splitter()
            async for piece in answering:
                for part in split.push(piece):
                    yield head.chunk(_delta(part, split.id, head.asked))
            for part in split.flush():
                yield head.chunk(_delta(part, split.id, head.asked))
            answer = answering.answer
            yield head.chunk({}, finish_reason(split, answer), sac=head.asked.account(answer))
            if usage:
                counted = asking.usage_of(answer.usage, prompt="prompt", completion="completion")
                yield event({**head.of("chat.completion.chunk"), "choices": [], "usage": counted})
        except Exception as error:  # the status is sent already
            yield event(errors.of(error).body)
        yield b"data: [DONE]\n\n"


def _delta(part: str | CallDelta, call: str, asked: Asked | AskedWithTools) -> dict[str, Any]:
    if isinstance(part, str):  # which is no JSON where the model was not asked
        return {"refusal" if asked.schema is not None and part == NO_ANSWER else "content": part}
    named = {} if part.name is None else {"id": call, "type": "function"}
    function = {**({} if part.name is None else {"name": part.name}), "arguments": part.arguments}
    return {"tool_calls": [{"index": 0, **named, "function": function}]}


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
