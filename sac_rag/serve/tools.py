"""Requests with tools: answered from the conversation that is sent, results of tools included; nothing is searched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sac_rag.config import AskConfig
from sac_rag.records import Answer, Timings
from sac_rag.serve import asking
from sac_rag.serve.asking import Asked
from sac_rag.serve.door import Door
from sac_rag.serve.errors import ApiError
from sac_rag.serve.libraries import ServedLibrary

if TYPE_CHECKING:
    from sac_rag.answer.chat import Message
    from sac_rag.answer.prompt import Prompt
    from sac_rag.answer.reader import Sampling
    from sac_rag.answer.steps import Steps
    from sac_rag.answer.tools import Calling, Splitter
    from sac_rag.pipeline import SacRag

KNOWN = frozenset({"where", "reader", "evidence"})
"""What `sac` of a request with tools may hold: all else is about a search."""


@dataclass(frozen=True)
class Said:
    """One message of a request. calls: (id, name, arguments). call_id: the call that a tool's message answers."""

    role: str
    content: Any = None
    calls: tuple[tuple[str, str, str], ...] = ()
    call_id: str = ""


class Talking(Iterator[str]):
    """Pieces of an answer to a conversation; `answer` is whole after the last."""

    def __init__(self, rag: SacRag, prompt: Prompt, sampling: Sampling, stop: Sequence[str], reader: str) -> None:
        self._began = time.perf_counter()
        self._reply = rag.reply(prompt, sampling, stop=stop, reader=reader)

    def __next__(self) -> str:
        return next(self._reply)

    def cancel(self) -> None:
        """Write no more."""
        self._reply.cancel()

    @property
    def steps(self) -> Steps:
        """What has been done for this answer so far."""
        return self._reply.steps

    @property
    def answer(self) -> Answer:
        reply, now = self._reply, time.perf_counter()
        timings = Timings(0.0, 0.0, (reply.first or now) - self._began, now - self._began)
        return Answer(
            reply.text.strip(),
            (),
            reply.usage,
            timings,
            confidence=reply.completion.logprob,
            finish_reason=reply.finish_reason,
            evidence=reply.evidence,
        )


@dataclass(frozen=True)
class AskedWithTools:
    """A conversation with tools, ready to be answered."""

    served: ServedLibrary
    prompt: Prompt
    sampling: Sampling
    calling: Calling
    ask: AskConfig
    question: str = ""
    """The text of the last message."""
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None

    def begin(self) -> Talking:
        """Begin to answer."""
        return Talking(self.served.rag, self.prompt, self.sampling, self.stop, self.ask.reader)

    def account(self, answer: Answer) -> dict[str, Any]:
        """An answer as JSON."""
        return answer.account()

    def splitter(self) -> Splitter:
        """Takes the call out of the text."""
        return self.calling.splitter()


@dataclass(frozen=True)
class Wanted:
    """A request of OpenAI's, of either shape. given: settings of the request itself; ours: those under `sac`."""

    messages: Sequence[Said]
    tools: Sequence[Any] | None
    choice: Any
    form: Any
    given: Mapping[str, Any]
    ours: Mapping[str, Any] | None
    max_tokens: int | None
    stop: tuple[str, ...] = ()
    instructions: str = ""

    async def asked(self, door: Door, served: ServedLibrary) -> Asked | AskedWithTools:
        """A question to the library, or, where tools are offered or were called, a conversation as it is.

        Schemas are compiled here, so that what is wrong with them is refused before an answer begins. Raises
        ConfigError and ApiError for what cannot be had.
        """
        from sac_rag.answer.constrained import schema_of

        schema, given = schema_of(self.form), {**self.given, **(self.ours or {})}
        called = any(m.calls or m.role == "tool" for m in self.messages)
        if called or (self.tools and self.choice != "none"):
            return await asyncio.to_thread(self._with_tools, door, served, schema, given)
        instructions, turns, question, forgotten = asking.conversation(self.messages)
        asked = asking.asked(
            served,
            door.key,
            door.limits,
            question=question,
            given=given,
            max_tokens=self.max_tokens,
            instructions="\n\n".join(t for t in (self.instructions, instructions) if t),
            turns=turns,
            forgotten=forgotten,
            stop=self.stop,
            schema=schema,
        )
        return await asking.compiled(asked)

    def _with_tools(
        self, door: Door, served: ServedLibrary, schema: Mapping[str, Any] | None, given: Mapping[str, Any]
    ) -> AskedWithTools:
        from sac_rag.answer.chat import Message
        from sac_rag.answer.reader import Sampling
        from sac_rag.answer.tools import choice_of, tools_of

        if strange := sorted((self.ours or {}).keys() - KNOWN):
            raise ApiError(
                400,
                "unsupported_parameter",
                f"sac.{strange[0]} is about a search; a request with tools is answered from its messages: leave it out",
                param="sac",
            )
        own = asking.asked(served, door.key, door.limits, question="", given=given, max_tokens=self.max_tokens)
        ask, rag = own.ask, served.rag
        said = _named([_message(m, number, rag, own.where) for number, m in enumerate(self.messages)])
        if not said or said[-1].role not in ("user", "tool"):
            message = "the last message must be the user's, or what a tool gave"
            raise ApiError(400, "no_question", message, param="messages")
        if self.instructions:
            said.insert(0, Message("system", (self.instructions,)))
        calling = rag.calling(said, tools_of(self.tools or ()), choice_of(self.choice), schema)
        sampling = Sampling(
            ask.max_new_tokens, ask.temperature, ask.top_p, ask.seed, min_new_tokens=1, constraint=calling.constraint
        )
        prompt = rag.conversation(said, sampling, tools=calling.told, reader=ask.reader, evidence=ask.evidence)
        last = self.messages[-1].content
        question = "" if last is None else asking.text_of(last, f"messages[{len(self.messages) - 1}]")
        return AskedWithTools(served, prompt, sampling, calling, ask, question, self.stop, schema)


def _message(said: Said, number: int, rag: SacRag, where: Mapping[str, Any] | None) -> Message:
    """A message for `SacRag.conversation`; what a tool gave is read as memory where it is a passage of the library."""
    from sac_rag.answer.chat import Message
    from sac_rag.answer.tools import ToolCall

    place = f"messages[{number}]"
    role = said.role if said.role == "tool" else asking.ROLES.get(said.role)
    if role is None:
        known = ", ".join((*asking.ROLES, "tool"))
        raise ApiError(400, "unsupported_role", f"role of {place} is {said.role!r}; known: {known}", param=place)
    text = "" if said.content is None and said.calls else asking.text_of(said.content, place)
    calls = tuple(ToolCall(name, arguments, call) for call, name, arguments in said.calls)
    content = rag.recall(text, where=where) if role == "tool" else (text,) if text else ()
    return Message(role, content, calls, call_id=said.call_id)


def _named(messages: Sequence[Message]) -> list[Message]:
    """Messages of tools with the names of the calls that they answer."""
    names = {call.id: call.name for m in messages for call in m.calls}
    return [replace(m, name=names.get(m.call_id, "")) if m.role == "tool" else m for m in messages]
