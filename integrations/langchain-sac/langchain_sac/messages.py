"""LangChain messages as messages of sac-rag: tags and memory blocks become passages, the rest text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, FunctionMessage, ToolMessage

from sac_rag.answer.tags import Tagger
from sac_rag.errors import ConfigError
from sac_rag.library.filters import all_of

if TYPE_CHECKING:
    from sac_rag import SacRag
    from sac_rag.answer.chat import Content, Message
    from sac_rag.answer.tools import ToolCall

ROLES = {
    "human": "user",
    "user": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}
"""Type of a message, or role of a ChatMessage -> role in the chat template."""


class Scope:
    """The passages that one call may read: all filters must hold, and if ids are given, the id must be among them.

    follows: go to the newest generation, once, when a genuine tag names a passage that the one seen does not hold.
    """

    def __init__(
        self,
        rag: SacRag,
        wheres: Iterable[Mapping[str, Any] | None] = (),
        allowed: Iterable[Sequence[str] | None] = (),
        *,
        follows: bool = False,
        recall: bool = False,
    ) -> None:
        self.rag, self.follows, self.moved, self.recall = rag, follows, False, recall
        self.where = all_of(*wheres)
        self.allowed = [frozenset(a) for a in allowed if a is not None]

    def cite(self, text: str) -> Content:
        """Text cut at the tags of passages that may be read; other tags stay text. With `recall`, also at the texts of
        passages that were handed out."""
        if self.follows and self._names_unheld(text):
            self.follows, self.moved = False, self.rag.library.refresh()
        if self.recall:
            found = self.rag.recall(text, where=self.where, among=self.permits)
        else:
            found = self.rag.cite(text, where=self.where)
        return tuple(p if isinstance(p, str) or self.permits(p.id) else self.rag.tag(p.id) for p in found)

    def reads(self, tags: str) -> bool:
        """Whether a text is tags and nothing else, and all of passages that may be read."""
        parts = self.cite(tags)
        return bool(parts) and not any(isinstance(p, str) and p.strip() for p in parts)

    def passage(self, passage_id: Any) -> Content:
        """A passage named by its id; ConfigError when it may not be read."""
        try:
            content = self.cite(self.rag.tag(str(passage_id)))
        except ValueError as error:
            raise ConfigError(f"a sac_kv block names {passage_id!r}: {error}") from error
        if any(isinstance(p, str) for p in content):
            limits = [*([f"where={self.where}"] if self.where else ()), *("allowed_ids" for _ in self.allowed)]
            within = f" within {' and '.join(limits)}" if limits else ""
            raise ConfigError(
                f"a sac_kv block names passage {passage_id!r}, which {self.rag.library.path} does not hold{within}: "
                "take ids from retrieved documents' sac_id"
            )
        return content

    def _names_unheld(self, text: str) -> bool:
        genuine = Tagger(self.rag.library.secret).split(text, lambda _: True)
        return self.rag.cite(text) != tuple(genuine)

    def permits(self, passage_id: str) -> bool:
        """Whether a passage is among the ids that are allowed."""
        return all(passage_id in ids for ids in self.allowed)


def to_sac(messages: Sequence[BaseMessage], scope: Scope) -> list[Message]:
    """The same conversation for `SacRag.conversation`; ConfigError names what cannot be read."""
    from sac_rag.answer.chat import Message

    def read() -> list[Message]:
        return [Message(_role(m), _content(m, scope), _calls(m), *_answers(m, names)) for m in messages]

    names = {c["id"]: c["name"] for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
    said = read()
    return read() if scope.moved else said  # what was cited before that may be gone


def asks(message: BaseMessage) -> bool:
    """Whether a message is a person's, not the result of a tool."""
    return (message.role if isinstance(message, ChatMessage) else message.type).lower() in ("human", "user")


def _role(message: BaseMessage) -> str:
    name = message.role if isinstance(message, ChatMessage) else message.type.removesuffix("MessageChunk").lower()
    if name not in ROLES:
        raise ConfigError(f"a message has the role {name!r}; ChatSac reads {', '.join(ROLES)}")
    return ROLES[name]


def _content(message: BaseMessage, scope: Scope) -> Content:
    parts: list[Any] = []
    if getattr(message, "status", "success") == "error":
        parts.append(f"Error of {message.name or 'a tool'}:\n")
    blocks = [message.content] if isinstance(message.content, str) else message.content
    for block in blocks:
        parts += _block(block, scope)
    return tuple(parts)


def _calls(message: BaseMessage) -> tuple[ToolCall, ...]:
    from sac_rag.answer.tools import ToolCall

    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return tuple(
        ToolCall(c["name"], json.dumps(c["args"], ensure_ascii=False, default=str), c["id"] or "") for c in calls
    )


def _answers(message: BaseMessage, names: Mapping[str | None, str]) -> tuple[str, str]:
    """(tool, id of the call) that a tool's message answers."""
    call = str(getattr(message, "tool_call_id", None) or "")
    if isinstance(message, ToolMessage | FunctionMessage):
        return message.name or names.get(call, ""), call
    return "", ""


def _block(block: Any, scope: Scope) -> Content:
    if isinstance(block, str):
        return scope.cite(block)
    kind = block.get("type")
    if kind == "non_standard":  # how LangChain wraps what it does not know
        block = block.get("value") or {}
        kind = block.get("type")
    if kind == "text":
        return scope.cite(block.get("text", ""))
    if kind == "sac_kv":
        ids = block.get("id")
        return tuple(p for i in (ids if isinstance(ids, list | tuple) else [ids]) for p in scope.passage(i))
    if kind in ("tool_call", "tool_use"):  # written from the message's tool_calls
        return ()
    raise ConfigError(f"a content block has the type {kind!r}; ChatSac reads text and sac_kv")
