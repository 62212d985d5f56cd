"""What all ways to ask have in common: settings of an answer, a conversation out of messages, sources as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from sac_rag.config import AskConfig, from_mapping
from sac_rag.errors import ConfigError
from sac_rag.records import Answer, Hit, Usage
from sac_rag.serve.errors import ApiError
from sac_rag.serve.keys import Key
from sac_rag.serve.libraries import ServedLibrary
from sac_rag.serve.settings import ServeConfig

if TYPE_CHECKING:
    from sac_rag.answer.stream import Stream
    from sac_rag.answer.tools import Splitter

MOST_TURNS = 16
"""Earlier turns that are read; older ones are forgotten, which `cut.turns` counts."""
MOST_STOPS, LONGEST_STOP = 16, 256
"""Strings that end an answer, and characters of one: every token is compared with all of them."""
OURS = frozenset({"rerank"})
"""Settings of an answer that requests may not choose."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXTS = ("text", "input_text", "output_text")
"""Types of a message's parts that are text."""


class Lenient(BaseModel):
    """A request of OpenAI's: fields that change nothing are ignored, those that would change the answer refused."""

    model_config = ConfigDict(extra="allow")

    def check(self, ignored: frozenset[str], neutral: Mapping[str, Sequence[Any]]) -> None:
        """ApiError 400 for a field that is neither known nor `ignored`, nor has one of its `neutral` values."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in ignored or value in neutral.get(name, ()):
                continue
            message = f"{name}={json.dumps(value)[:80]} is not supported here: leave it out"
            raise ApiError(400, "unsupported_parameter", message, param=name)


@dataclass(frozen=True)
class Asked:
    """A question with its conversation, ready to be answered."""

    served: ServedLibrary
    question: str
    ask: AskConfig
    where: Mapping[str, Any] | None = None
    turns: tuple[tuple[str, str], ...] = ()
    instructions: str = ""
    stop: tuple[str, ...] = ()
    text: bool = False
    """Read passages as text, for comparison."""
    forgotten: int = 0
    """Turns that are not in `turns`."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is held to."""
    heat: bool = False
    """Say which anchors were attended."""

    def splitter(self) -> Splitter:
        """Takes calls of tools out of the text: there are none."""
        from sac_rag.answer.tools import Splitter

        return Splitter({})

    def begin(self) -> Stream:
        """Begin to answer; blocks while the passages are looked for."""
        rag, talk, began = self.served.rag, None, time.perf_counter()
        if self.turns or self.instructions:
            talk = rag.replay(self.turns, self.ask, where=self.where, instructions=self.instructions)
        replayed = time.perf_counter()
        given: dict[str, Any] = {"where": self.where, "text": self.text, "stop": self.stop, "schema": self.schema}
        stream = rag.stream(self.question, self.ask, conversation=talk, heat=self.heat, **given)
        if talk is not None:
            stream.steps.note("replay", began, replayed, turns=len(self.turns))
        return stream

    def account(self, answer: Answer) -> dict[str, Any]:
        """An answer as JSON: the account of every shell, with what only a server knows."""
        found = answer.account()
        found["cut"]["turns"] += self.forgotten
        heats = [{"heat": told["heat"]} if "heat" in told else {} for told in found["sources"]]
        marked = zip(answer.sources, heats, strict=True)
        found["sources"] = [{**source(hit, answer.text), **heat} for hit, heat in marked]
        return found


def stops_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Strings that end an answer. ApiError 400 for more, or longer ones, than are compared with each token."""
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MOST_STOPS or any(len(s) > LONGEST_STOP for s in found):
        message = f"stop has {len(found)} strings; at most {MOST_STOPS} of at most {LONGEST_STOP} characters are taken"
        raise ApiError(400, "unsupported_parameter", message, param="stop")
    return found


def settings_of(limits: ServeConfig, given: Mapping[str, Any], max_tokens: int | None) -> AskConfig:
    """Settings of an answer by name; None is the default. ConfigError for what none is, or is over the limits."""
    values = {name: value for name, value in given.items() if value is not None}
    if chosen := sorted(values.keys() & OURS):
        raise ConfigError(f"{chosen[0]} names a model to load, which is the server's choice: leave it out")
    if max_tokens is not None:
        values["max_new_tokens"] = max_tokens
    ask = from_mapping(AskConfig, values)
    if ask.max_new_tokens > limits.max_tokens:
        raise ConfigError(f"max_tokens is {ask.max_new_tokens}; this server writes at most {limits.max_tokens}")
    return ask


def conversation(messages: Sequence[Any]) -> tuple[str, tuple[tuple[str, str], ...], str, int]:
    """(instructions, earlier turns, the question, turns that are too old) of messages with `role` and `content`.

    Neighbours of one role are read as one. ApiError 400 for a role or content that is none of text, and where the last
    message is not the user's.
    """
    if not messages:
        raise ApiError(400, "no_messages", "messages is empty; the last one asks the question", param="messages")
    system: list[str] = []
    said: list[tuple[str, list[str]]] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if message.role not in ROLES:
            known = ", ".join(ROLES)
            raise ApiError(400, "unsupported_role", f"role of {place} is {message.role!r}; known: {known}", param=place)
        role, text = ROLES[message.role], text_of(message.content, place)
        if role == "system":
            system.append(text)
        elif said and said[-1][0] == role:
            said[-1][1].append(text)
        else:
            said.append((role, [text]))
    if not said or said[-1][0] != "user":
        raise ApiError(400, "no_question", "the last message must be the user's: it is the question", param="messages")
    if said[0][0] != "user":
        raise ApiError(
            400, "no_question", "the conversation begins with an answer; begin with a question", param="messages"
        )
    *texts, question = ["\n\n".join(parts) for _, parts in said]
    turns = list(zip(texts[::2], texts[1::2], strict=True))
    kept = turns[-MOST_TURNS:]
    return "\n\n".join(s for s in system if s), tuple(kept), question, len(turns) - len(kept)


def text_of(content: Any, place: str) -> str:
    """The text of a message: a string, or parts that are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [str(p["text"]) for p in parts if isinstance(p, dict) and p.get("type") in TEXTS and "text" in p]
    if not parts or len(texts) != len(parts):
        raise ApiError(
            400, "unsupported_content", f"content of {place} is not text, and nothing else is read", param=place
        )
    return "".join(texts)


def source(hit: Hit, answer: str | None = None) -> dict[str, Any]:
    """A passage as JSON. answer: marks where in the passage it stands."""
    from sac_rag.answer.spans import answering_span

    passage = hit.passage
    found = {
        "id": passage.id,
        "document": passage.document,
        "start": passage.start,
        "end": passage.end,
        "heading": passage.heading,
        "score": hit.score,
        "dense": hit.dense,
        "lexical": hit.lexical,
        "fused": hit.fused,
        "reranked": hit.reranked,
        "tokens": passage.tokens,
        "meta": passage.meta,
        "text": passage.text,
    }
    return found if answer is None else {**found, "answer_span": answering_span(answer, passage.text)}


def usage_of(usage: Usage, *, prompt: str, completion: str) -> dict[str, Any]:
    """OpenAI's usage: the prompt is what was attended, memory, computed long before, its cached part."""
    return {
        f"{prompt}_tokens": usage.attended,
        f"{completion}_tokens": usage.completion_tokens,
        "total_tokens": usage.attended + usage.completion_tokens,
        f"{prompt}_tokens_details": {"cached_tokens": usage.anchors},
    }


def system_fingerprint(served: ServedLibrary) -> str:
    """Changes with the library's generation, and with all that answers depend on."""
    head = served.rag.newest().head
    text = json.dumps([head.library, head.generation, head.fingerprint], sort_keys=True)
    return f"fp_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def asked(
    served: ServedLibrary,
    key: Key,
    limits: ServeConfig,
    *,
    question: str,
    given: Mapping[str, Any],
    **rest: Any,
) -> Asked:
    """What a key asks of a library. given: fields of AskConfig, `where` and `text` of our own extension."""
    values = dict(given)
    where, text = values.pop("where", None), values.pop("text", False)
    if where is not None and not isinstance(where, dict):
        raise ConfigError(f"where is {where!r}; give a filter such as {{'team': 'desk'}}")
    ask = settings_of(limits, values, rest.pop("max_tokens", None))
    return Asked(served, question, ask, served.where(key, where), text=bool(text), **rest)


async def compiled(asked: Asked) -> Asked:
    """A question whose schema, if it has one, is compiled: what is wrong with it is refused before an answer begins."""
    if asked.schema is not None:
        await asyncio.to_thread(asked.served.rag.held_to, asked.schema, asked.ask)
    return asked
