"""/v1/responses: OpenAI's newer shape of the same answer. Nothing is kept: a request brings its whole conversation."""

from __future__ import annotations

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
from sac_rag.serve.chat import event
from sac_rag.serve.door import Door
from sac_rag.serve.tools import AskedWithTools, Said, Wanted

if TYPE_CHECKING:
    from sac_rag.answer.tools import CallDelta

router = APIRouter(route_class=StrictRoute)

IGNORED = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls "
    "reasoning include stream_options".split()
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncation": ("disabled", "auto"),
    "background": (False,),
    "top_logprobs": (0,),
}


class InputMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: str = "message"
    role: str = ""
    content: Any = None
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: Any = None

    def said(self) -> Said:
        """ApiError 400 for input of another type."""
        if self.type == "function_call":
            return Said("assistant", None, ((self.call_id, self.name, self.arguments),))
        if self.type == "function_call_output":
            return Said("tool", self.output, call_id=self.call_id)
        if self.type != "message":
            raise errors.ApiError(400, "unsupported_content", f"input of type {self.type!r} is not read", param="input")
        return Said(self.role, self.content)


class Text(Lenient):
    format: Any = None


class ResponsesRequest(Lenient):
    model: str
    input: str | list[InputMessage]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    text: Text | None = None
    sac: dict[str, Any] | None = None


@router.post("/v1/responses", response_model=None)
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer the last message of `input` from the library that `model` names."""
    body.check(IGNORED, NEUTRAL)
    door = Door.of(request)
    served = door.model(body.model)
    messages = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    if body.text is not None:
        body.text.check(frozenset({"verbosity"}), {})
    asked = await Wanted(
        [m.said() for m in messages],
        body.tools,
        body.tool_choice,
        body.text.format if body.text is not None else None,
        {"temperature": body.temperature, "top_p": body.top_p},
        body.sac,
        body.max_output_tokens,
        instructions=body.instructions or "",
    ).asked(door, served)
    answering, record = door.answer(asked, body.model, stream=body.stream), _Record(body, asked)
    if body.stream:
        return StreamingResponse(_events(record, answering), media_type="text/event-stream")
    answer = await answering.whole(request)
    parts = (*record.split.push(answer.text), *record.split.flush())
    return JSONResponse(record.whole(answer, "".join(p for p in parts if isinstance(p, str))))


class _Record:
    """A response while it comes to be."""

    def __init__(self, body: ResponsesRequest, asked: Asked | AskedWithTools) -> None:
        self.body, self.asked, self.split = body, asked, asked.splitter()
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
            "text": {"format": (self.body.text.format if self.body.text else None) or {"type": "text"}},
            "tool_choice": self.body.tool_choice or ("auto" if self.body.tools else "none"),
            "tools": self.body.tools or [],
            "top_p": ask.top_p,
            "truncation": "disabled",
            "metadata": {},
            "usage": None,
            **more,
        }

    def item(self, status: str, part: dict[str, Any] | None) -> dict[str, Any]:
        content = [] if part is None else [part]
        return {"id": self.message, "type": "message", "role": "assistant", "status": status, "content": content}

    def call(self, status: str, arguments: str | None = None) -> dict[str, Any]:
        """The call of a tool that the answer is."""
        call = self.split.call
        assert call is not None, "asked for once a call has begun"
        named = {"id": f"fc_{self.id}", "type": "function_call", "call_id": call.id, "name": call.name}
        return {**named, "status": status, "arguments": call.arguments if arguments is None else arguments}

    def part(self, text: str, *, refused: bool = False) -> dict[str, Any]:
        return {"type": "refusal", "refusal": text} if refused else _part(text)

    def whole(self, answer: Answer, said: str) -> dict[str, Any]:
        """said: the text of the answer, without a call; the call is in `split`."""
        cut = answer.finish_reason == "length"
        usage = asking.usage_of(answer.usage, prompt="input", completion="output")
        status = "incomplete" if cut else "completed"
        part = self.part(said, refused=self.asked.schema is not None and answer.abstained)
        called = self.split.call is not None
        return self.of(
            status,
            [
                *([self.item(status, part)] if said or not called else []),
                *([self.call(status)] if called else []),
            ],
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

    async with aclosing(answering):
        try:
            yield told("response.created", response=record.of("in_progress", []))
            yield told("response.in_progress", response=record.of("in_progress", []))
            said, split, schema = "", record.split, record.asked.schema is not None
            place: dict[str, Any] = {}

            def added(part: str | CallDelta) -> list[bytes]:
                """What a part of the answer adds; an item is begun with its first one."""
                nonlocal said, place
                if isinstance(part, str):
                    refused = schema and part == NO_ANSWER  # which is no JSON: the model was not asked
                    events = []
                    if not said:
                        place = {"item_id": record.message, "output_index": 0, "content_index": 0}
                        item, empty = record.item("in_progress", None), record.part("", refused=refused)
                        events.append(told("response.output_item.added", output_index=0, item=item))
                        events.append(told("response.content_part.added", **place, part=empty))
                    said += part
                    kind = "response.refusal.delta" if refused else "response.output_text.delta"
                    more: dict[str, Any] = {} if refused else {"logprobs": []}
                    return [*events, told(kind, **place, delta=part, **more)]
                index = 1 if said else 0
                if part.name is not None:
                    item = record.call("in_progress", "")
                    return [told("response.output_item.added", output_index=index, item=item)]
                where = {"item_id": f"fc_{record.id}", "output_index": index}
                return [told("response.function_call_arguments.delta", **where, delta=part.arguments)]

            async for piece in answering:
                for part in split.push(piece):
                    for one in added(part):
                        yield one
            for part in (*split.flush(), *([""] if split.call is None and not said else [])):
                for one in added(part):
                    yield one
            answer = answering.answer
            whole = record.whole(answer, said)
            for index, item in enumerate(whole["output"]):
                if item["type"] == "function_call":
                    where = {"item_id": item["id"], "output_index": index}
                    done = {"name": item["name"], "arguments": item["arguments"]}
                    yield told("response.function_call_arguments.done", **where, **done)
                else:
                    (part,) = item["content"]
                    if part["type"] == "refusal":
                        yield told("response.refusal.done", **place, refusal=said)
                    else:
                        yield told("response.output_text.done", **place, text=said, logprobs=[])
                    yield told("response.content_part.done", **place, part=part)
                yield told("response.output_item.done", output_index=index, item=item)
            yield told(f"response.{whole['status']}", response=whole)
        except Exception as error:  # the status is sent already
            told_error = errors.of(error)
            failed = {"code": "server_error", "message": told_error.message}
            yield told("response.failed", response=record.of("failed", [], error=failed))
