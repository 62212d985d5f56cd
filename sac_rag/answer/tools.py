"""Tools of a caller's: how a model is told of them, how it writes a call, and how a call is read out of its answer."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sac_rag.answer.constrained import Call, Constraint, Grammars
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.templates import DIRECT
from sac_rag.errors import ConfigError

MOST_TOOLS = 64
"""Tools that one request may offer."""
AUTO, ANY, NONE = "auto", "any", "none"
_NAMES = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """What may be called. parameters: the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NO_ARGUMENTS))

    def __post_init__(self) -> None:
        if not _NAMES.fullmatch(self.name):
            raise ConfigError(f"a tool is called {self.name[:80]!r}; use 1 to 64 letters, digits and _ . : -")

    @classmethod
    def of(cls, given: Any) -> Tool:
        """A tool as OpenAI's clients and frameworks write it: {"type": "function", "function": {"name", …}}, or flat.

        Raises ConfigError for another kind of tool.
        """
        if not isinstance(given, Mapping) or given.get("type", "function") != "function":
            raise ConfigError(f"{_shown(given)} is no tool of type function, and no other is called")
        said = given.get("function", given)
        if not isinstance(said, Mapping) or not isinstance(said.get("name"), str):
            raise ConfigError(f"the tool {_shown(given)} has no name")
        parameters = said.get("parameters") or _NO_ARGUMENTS
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"parameters of the tool {said['name'][:80]!r} are no JSON schema")
        return cls(said["name"], str(said.get("description") or ""), {"type": "object", **parameters})

    def as_openai(self) -> dict[str, Any]:
        """As chat templates take it."""
        said = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": said}


@dataclass(frozen=True)
class ToolCall:
    """A call that a model made. arguments: their JSON text."""

    name: str
    arguments: str
    id: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The arguments; ValueError where the text is no JSON object, as of an answer that was cut."""
        found = json.loads(self.arguments)
        if not isinstance(found, dict):
            raise ValueError(f"arguments of {self.name} are {type(found).__name__}, not an object")
        return found


def tools_of(given: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools as `Tool.of` reads them. Raises ConfigError for too many, and for two of one name."""
    if len(given) > MOST_TOOLS:
        raise ConfigError(f"{len(given)} tools were given; {MOST_TOOLS} are the most")
    tools = tuple(t if isinstance(t, Tool) else Tool.of(t) for t in given)
    names = [t.name for t in tools]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise ConfigError(f"two tools are called {twice!r}")
    return tools


def choice_of(given: Any) -> str:
    """`tool_choice` as clients write it, as "auto", "any", "none" or a tool's name."""
    if given is None or given is False:
        return AUTO
    if given is True or given == "required":
        return ANY
    if isinstance(given, Mapping):
        function = given.get("function", given)
        name = function.get("name") if isinstance(function, Mapping) else None
        if given.get("type", "function") == "function" and isinstance(name, str):
            return name
    if isinstance(given, str):
        return given
    raise ConfigError(f"tool_choice is {_shown(given)}; use auto, any, none or a tool's name")


def _shown(value: Any) -> str:
    """The beginning of what a request says."""
    return json.dumps(value, default=str)[:120]


# -- how a model writes a call -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolFormat:
    """The words of a call: begin, the tool's name, between, the arguments as JSON, end.

    own: whether they are those of the model's chat template, so that the model was taught to choose tools. opening:
    special tokens that `begin` begins with; words: what is left of it. trigger: a token that nothing but a call begins
    with, if there is one.
    """

    begin: str = '{"name": "'
    between: str = '", "arguments": '
    end: str = "}"
    own: bool = False
    opening: tuple[int, ...] = ()
    words: str = '{"name": "'
    trigger: int | None = None

    def call(self, call: ToolCall) -> tuple[str, str, str, str, str]:
        """The pieces of a call; the first, third and last are the template's own words."""
        return self.begin, call.name, self.between, call.arguments, self.end


_PROBE, _NAME, _KEY, _SAID = "\ue000probe\ue001", "\ue000name\ue001", "\ue000key\ue001", "\ue000said\ue001"


def format_of(backbone: Backbone) -> ToolFormat:
    """How calls are written in a model's chat template; a plain JSON object where it knows no tools."""
    tokenizer = backbone.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return ToolFormat()
    probe = Tool("probe", _PROBE).as_openai()
    asked = {"role": "user", "content": "?"}
    function = {"name": _NAME, "arguments": {_KEY: _KEY}}
    calls = [{"id": "0" * 9, "type": "function", "function": function}]

    def rendered(*messages: dict[str, Any], **told: Any) -> str:
        text: str = tokenizer.apply_chat_template([asked, *messages], tokenize=False, **told, **DIRECT)
        return text

    try:
        front = rendered(add_generation_prompt=True, tools=[probe])
        said = rendered({"role": "assistant", "content": _SAID}, tools=[probe])
        called = rendered({"role": "assistant", "content": "", "tool_calls": calls}, tools=[probe])
        plain, _, tail = said.partition(_SAID)
        head = next((h for h in (front, plain) if called.startswith(h)), None)
        if head is None or _PROBE not in front:
            return ToolFormat()
        begin, _, rest = called[len(head) :].partition(_NAME)
        arguments = rest.index("{")
        values, end = json.JSONDecoder().raw_decode(rest, arguments)
        if values != {_KEY: _KEY} or not begin or not arguments:
            return ToolFormat()
    except Exception:  # templates raise what they like
        return ToolFormat()
    opening, words = _opening(backbone, begin)
    trigger = opening[0] if opening else _trigger(backbone, begin)
    return ToolFormat(begin, rest[:arguments], rest[end:].removesuffix(tail), True, opening, words, trigger)


def _opening(backbone: Backbone, begin: str) -> tuple[tuple[int, ...], str]:
    """Special tokens that a call begins with, and its other words up to the name."""
    backend = getattr(backbone.tokenizer, "backend_tokenizer", None)
    added = backend.get_added_tokens_decoder() if backend is not None else {}
    special = {i for i, token in added.items() if token.special} | set(backbone.tokenizer.all_special_ids)
    opening: list[int] = []
    for token in backbone.template(begin):
        word = backbone.tokenizer.decode([token], skip_special_tokens=False)
        if token not in special or not begin.startswith(word):
            break
        opening.append(token)
        begin = begin[len(word) :]
    return tuple(opening), begin


def _trigger(backbone: Backbone, begin: str) -> int | None:
    first = backbone.template(begin)[0]
    word = backbone.tokenizer.decode([first], skip_special_tokens=False)
    return first if len(word.strip()) >= 4 else None


def described(tools: Sequence[Tool]) -> str:
    """Tools in words, for a model whose chat template knows none."""
    lines = ["Tools that can be called, each with its arguments:"]
    for tool in tools:
        properties = tool.parameters.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        lines.append(f"{tool.name}({', '.join(map(str, properties))}): {tool.description}".rstrip(": "))
        for name, schema in properties.items():
            about = schema if isinstance(schema, Mapping) else {}
            kind = about.get("type") or ("one of " + json.dumps(about["enum"]) if "enum" in about else "")
            words = [w for w in (kind if isinstance(kind, str) else "", str(about.get("description") or "")) if w]
            if words:
                lines.append(f"  {name}: {', '.join(words)}")
    return "\n".join(lines)


# -- one answer with tools -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calling:
    """How tools are offered for one answer. told: those that the prompt describes. constraint: what holds the answer to
    calls, or to the schema that it was asked for."""

    told: tuple[Tool, ...] = ()
    constraint: Constraint | None = None
    heads: Mapping[str, str] = field(default_factory=dict)
    """Words of an answer that a call begins with, up to its arguments -> the name of its tool."""

    def splitter(self) -> Splitter:
        return Splitter(self.heads)


def calling(
    grammars: Grammars,
    format: ToolFormat,
    tools: Sequence[Tool],
    choice: str = AUTO,
    schema: Mapping[str, Any] | None = None,
    *,
    asked: bool,
) -> Calling:
    """How these tools are offered. asked: whether the last message is the user's, and no result of a tool.

    choice: "auto": a model whose chat template knows tools chooses by itself; any other was never taught to, so it
    calls one for each message of the user's and answers when the results are there. "any": one of the tools is called;
    "none": none is; a name: that one. schema: of an answer that is no call. Raises ConfigError for an unknown name, and
    for schemas that cannot be compiled.
    """
    chosen = _chosen(tools, choice)
    free = choice == AUTO and (format.own or not asked)
    if not chosen or (free and not format.own):
        held = None if schema is None else Constraint(grammars.grammar(schema))
        return Calling(tuple(tools) if format.own else (), held)
    heads = {format.words + tool.name + format.between: tool for tool in chosen}
    calls = [Call(format.opening, head, tool.parameters, format.end.strip()) for head, tool in heads.items()]
    grammar = grammars.grammar(schema if free else None, calls)
    constraint = Constraint(grammar, free and schema is None, format.trigger)
    named = {head.lstrip(): tool.name for head, tool in heads.items()}
    return Calling(tuple(tools) if format.own else chosen, constraint, named)


def _chosen(tools: Sequence[Tool], choice: str) -> tuple[Tool, ...]:
    """The tools that may be called."""
    if choice in (AUTO, NONE):
        return tuple(tools) if choice == AUTO else ()
    if not tools:
        raise ConfigError(f"tool_choice is {choice[:80]!r}, and no tools were given")
    chosen = tuple(t for t in tools if choice in (ANY, t.name))
    if not chosen:
        names = ", ".join(t.name for t in tools)
        raise ConfigError(f"tool_choice names {choice[:80]!r}, which is none of the tools: {names}")
    return chosen


@dataclass(frozen=True)
class CallDelta:
    """A piece of a call. name: in the first piece alone. arguments: what their JSON goes on with."""

    name: str | None
    arguments: str


class Splitter:
    """The text of an answer, as it is written, split into what is said and the call that is made."""

    def __init__(self, heads: Mapping[str, str]) -> None:
        self._heads = heads
        self._text, self._said = "", 0
        self._name: str | None = None
        self._depth, self._quoted, self._escaped, self._closed = 0, False, False, False
        self.id = f"call_{secrets.token_hex(12)}"
        self._arguments: list[str] = []

    @property
    def call(self) -> ToolCall | None:
        """The call so far; None where none was begun."""
        return None if self._name is None else ToolCall(self._name, "".join(self._arguments), self.id)

    def push(self, piece: str) -> list[str | CallDelta]:
        """What a next piece of the answer adds."""
        if self._name is not None:
            return self._argued(piece)
        self._text += piece
        for head, name in self._heads.items():
            at = self._text.find(head, max(0, self._said - len(head)))
            if at >= 0:
                said, rest = self._text[self._said : at].rstrip(), self._text[at + len(head) :]
                self._name = name
                return [*([said] if said else ()), CallDelta(name, ""), *self._argued(rest)]
        return self._shown(len(self._text) - self._begun())

    def flush(self) -> list[str | CallDelta]:
        """What was held back, as it might have been the beginning of a call."""
        return [] if self._name is not None else self._shown(len(self._text))

    def _shown(self, upto: int) -> list[str | CallDelta]:
        piece, self._said = self._text[self._said : upto], max(self._said, upto)
        return [piece] if piece else []

    def _begun(self) -> int:
        """Length of the longest end of the text that may be the beginning of a call, and of blanks before it."""
        longest = 0
        for head in self._heads:
            for n in range(min(len(head), len(self._text)), longest, -1):
                if self._text.endswith(head[:n]):
                    longest = n
                    break
        text = self._text[: len(self._text) - longest]
        return longest + (len(text) - len(text.rstrip()) if self._heads else 0)

    def _argued(self, piece: str) -> list[str | CallDelta]:
        taken = []
        for character in piece:
            if self._closed:
                break
            taken.append(character)
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._closed = not self._depth
        if not taken:
            return []
        self._arguments.append("".join(taken))
        return [CallDelta(None, "".join(taken))]
