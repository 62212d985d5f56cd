"""/v1/responses: OpenAI's newer shape of the same answer. Nothing is kept: a request brings its whole conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response, StreamingResponse

from sac_rag.records import Answer
from sac_rag.serve import asking, errors
from sac_rag.serve.answering import Answering
from sac_rag.serve.asking import Asked, Lenient
from sac_rag.serve.body import StrictRoute
from sac_rag.serve.chat import event
from sac_rag.serve.door import Door

router = APIRouter(route_class=StrictRoute)

IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls "
    "reasoning include stream_options".split()
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "truncation": ("disabled", "auto"),
    "background": (False,),
    "text": ({"format": {"type": "text"}},),
    "top_logprobs": (0,),
}


class InputMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: str = "message"
    role: str = ""
    content: Any = None


class ResponsesRequest(Lenient):
    model: str
    input: str | list[InputMessage]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    sac: dict[str, Any] | None = None


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer the last message of `input` from the library that `model` names."""
    body.check(IGNORED, NEUTRAL)
    door = Door.of(request)
    served = door.model(body.model)
    messages = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    if strange := next((m.type for m in messages if m.type != "message"), None):
        raise errors.ApiError(400, "unsupported_content", f"input of type {strange!r} is not read", param="input")
    instructions, turns, question, forgotten = asking.conversation(messages)
    asked = asking.asked(
        served,
        door.key,
        door.limits,
        question=question,
        given={"temperature": body.temperature, "top_p": body.top_p, **(body.sac or {})},
        max_tokens=body.max_output_tokens,
        instructions="\n\n".join(t for t in (body.instructions or "", instructions) if t),
        turns=turns,
        forgotten=forgotten,
    )
    answering, record = door.pool.answer(served.name, asked.begin), _Record(body, asked)
    if body.stream:
        return StreamingResponse(_events(record, answering), media_type="text/event-stream")
    return JSONResponse(record.whole(await answering.whole(request)))


class _Record:
    """A response while it comes to be."""

    def __init__(self, body: ResponsesRequest, asked: Asked) -> None:
        self.body, self.asked = body, asked
        self.id, self.message = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.created = int(time.time())

    def of(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        ask = self.asked.ask
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.instructions,
            "max_output_tokens": ask.max_new_tokens,
            "model": self.body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": ask.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": ask.top_p,
            "truncation": "disabled",
            "metadata": {},
            "usage": None,
            **more,
        }

    def item(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [_part(text)]
        return {"id": self.message, "type": "message", "role": "assistant", "status": status, "content": content}

    def whole(self, answer: Answer) -> dict[str, Any]:
        cut = answer.finish_reason == "length"
        usage = asking.usage_of(answer.usage, prompt="input", completion="output")
        status = "incomplete" if cut else "completed"
        return self.of(
            status,
            [self.item(status, answer.text)],
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage={**usage, "output_tokens_details": {"reasoning_tokens": 0}},
            sac=self.asked.account(answer),
        )


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def _events(record: _Record, answering: Answering) -> AsyncIterator[bytes]:
    number = 0

    def told(kind: str, **content: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1, **content}, kind)

    item = {"item_id": record.message, "output_index": 0, "content_index": 0}
    async with aclosing(answering):
        try:
            yield told("response.created", response=record.of("in_progress", []))
            yield told("response.in_progress", response=record.of("in_progress", []))
            yield told("response.output_item.added", output_index=0, item=record.item("in_progress", None))
            yield told("response.content_part.added", **item, part=_part(""))
            async for piece in answering:
                yield told("response.output_text.delta", **item, delta=piece, logprobs=[])
            answer = answering.answer
            whole = record.whole(answer)
            yield told("response.output_text.done", **item, text=answer.text, logprobs=[])
            yield told("response.content_part.done", **item, part=_part(answer.text))
            yield told("response.output_item.done", output_index=0, item=whole["output"][0])
            yield told(f"response.{whole['status']}", response=whole)
        except Exception as error:  # the status is sent already
            told_error = errors.of(error)
            failed = {"code": "server_error", "message": told_error.message}
            yield told("response.failed", response=record.of("failed", [], error=failed))
