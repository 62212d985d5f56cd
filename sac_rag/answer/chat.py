"""Messages to one prompt: the model's own chat template, with memories where the messages name passages."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sac_rag.answer.prompt import Piece, Prompt, Recall
from sac_rag.answer.tags import PassageRef
from sac_rag.answer.tools import Tool, ToolCall, ToolFormat, described, format_of
from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.compress.templates import DIRECT, evidence_ids
from sac_rag.errors import ConfigError

Content: TypeAlias = tuple[str | PassageRef, ...]

_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True)
class Message:
    """One message of a conversation. role: "system", "user", "assistant" or "tool".

    calls: what the assistant called. name, call_id: of a tool's message, the tool and the call that it answers.
    """

    role: str
    content: Content
    calls: tuple[ToolCall, ...] = ()
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True)
class MemorySource:
    """Where memories come from: how large those of some passages are, and how to load them.

    key: tells sources apart in a conversation's cache.
    """

    key: str
    extents: Callable[[Sequence[str]], list[tuple[int, int]]]
    """passage ids -> (anchors, source tokens) of each."""
    load: Callable[[Sequence[str]], Sequence[Sequence[AnchorKV]]]
    """passage ids -> the memories of each, several where it is longer than one may be."""
    holds: Callable[[str], bool]
    """passage id -> whether it is there."""
    texts: Callable[[Sequence[str]], Mapping[str, str]] = lambda ids: {}
    """passage ids -> what those say whose text is known, in the order of the ids."""


def chat_prompt(
    method: Method,
    messages: Sequence[Message],
    source: MemorySource,
    *,
    placing: Placing | None = None,
    tools: Sequence[Tool] = (),
    format: ToolFormat | None = None,
) -> Prompt:
    """The prompt of a conversation, ready for the assistant's next answer.

    tools: those that the prompt tells of. format: how calls are written, by default what the chat template says. A
    model whose template knows no tools reads of them in the system message, and what a tool gave in front of the
    question that it was called for, as it reads passages; its calls are left out.
    Neighbouring messages of one role are read as one. Passages that follow each other with nothing but blanks between
    them become one memory, as an adapter was trained: they are taken to be named best first, as retrievers give them,
    and stand in the order of `placing` (the method's own, unless given). Other passages of the same message go on in
    rank. A passage named again later is read where it was named first.
    Text of messages never becomes special tokens. Raises ConfigError when there is no message, a role is unknown or the
    chat template does not take the messages.
    """
    if tools or any(m.role == "tool" or m.calls for m in messages):
        format = format or format_of(method.backbone)
        if format.own:
            messages = [_called(m, format) for m in messages]
        else:
            messages, tools = _without_tools(method, messages, tools), ()
    merged = _merged(messages)
    pieces: list[str | PassageRef | _Trusted] = []
    for index, text in _rendered(method, merged, tools):
        if index is None:
            pieces.append(_Trusted(text))
        elif index < len(merged):
            pieces += merged[index].content
        else:
            pieces.append(text)
    return _laid(method, _grouped(_once(pieces)), source, placing or method.placing)


def layout_messages(method: Method, body: str, question: str) -> list[tuple[str, str]]:
    """(role, text) of messages that the chat template renders as the adapter's own layout, `body` before the question.

    Where the template cannot render that prefix, the whole is one user message.
    """
    prefix, user = method.layout.prefix, ("user", f"{body}{method.layout.before}{question}")
    with contextlib.suppress(ConfigError):  # some templates know no system message
        rendered = _rendered(method, [Message("system", ()), Message("user", ())])
        marks = [n for n, (index, _) in enumerate(rendered) if index is not None]
        front, between = ("".join(t for _, t in part) for part in (rendered[: marks[0]], rendered[marks[0] : marks[1]]))
        if prefix.startswith(front) and prefix.endswith(between) and len(prefix) >= len(front) + len(between):
            return [("system", prefix[len(front) : len(prefix) - len(between)]), user]
    return [user]


class _Trusted(str):
    """Text of the chat template itself, whose special tokens count."""


def _merged(messages: Sequence[Message]) -> list[Message]:
    if not messages:
        raise ConfigError("a conversation needs at least one message")
    merged: list[Message] = []
    for m in messages:
        if m.role not in ("system", "user", "assistant", "tool"):
            raise ConfigError(f"unknown role {m.role!r}; use system, user, assistant or tool")
        if merged and merged[-1].role == m.role != "tool":
            merged[-1] = Message(m.role, (*merged[-1].content, "\n\n", *m.content))
        else:
            merged.append(m)
    return merged


def _called(message: Message, format: ToolFormat) -> Message:
    """An assistant's message with its calls in the words of the chat template."""
    content: list[str | PassageRef] = list(message.content)
    for call in message.calls:
        begin, name, between, arguments, end = format.call(call)
        content += [*(["\n"] if content else []), _Trusted(begin), name, _Trusted(between), arguments, _Trusted(end)]
    return Message(message.role, tuple(content), name=message.name, call_id=message.call_id)


def _without_tools(method: Method, messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Messages for a model that knows no tools: results in front of the question, in the adapter's own words."""
    out: list[Message] = []
    question: Content | None = None
    results: list[Content] = []

    def flush() -> None:
        nonlocal question
        if results:
            given = [p for result in results for p in (method.layout.separator, *result)][1:]
            asked = () if question is None else (method.layout.before, *question)
            out.append(Message("user", (*given, *asked)))
            results.clear()
        elif question is not None:
            out.append(Message("user", question))
        question = None

    for message in messages:
        if message.role == "tool":
            results.append(message.content)
        elif message.role == "user":
            flush()
            question = message.content
        elif not message.calls:
            flush()
            out.append(message)
    read = bool(results)
    flush()
    system = any(m.role == "system" for m in out)
    if tools:
        out.insert(sum(m.role == "system" for m in out[:1]), Message("system", (described(tools),)))
    elif read and not system:
        out[:0] = [Message(role, (text,)) for role, text in layout_messages(method, "", "")[:-1]]
    return out


def _rendered(method: Method, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[tuple[int | None, str]]:
    """Text of the chat template, and the messages' contents by number, in order.

    Words of the tools that are spelled like special tokens come with numbers beyond those of the messages.
    """
    tokenizer = method.backbone.tokenizer
    plain = [_plain(m, _MARK.format(i)) for i, m in enumerate(messages)]
    words: list[str] = []
    told = {"tools": [_unspelled(t.as_openai(), tokenizer, words, len(plain)) for t in tools]} if tools else {}
    if getattr(tokenizer, "chat_template", None):
        try:
            text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **told, **DIRECT)
        except Exception as error:  # templates raise what they like
            raise ConfigError(f"the model's chat template does not take these messages: {error}") from error
    else:
        text = "".join(f"{m['role']}: {m['content']}\n\n" for m in plain) + "assistant:"
    out: list[tuple[int | None, str]] = []
    at = 0
    for mark in _MARKS.finditer(text):
        number = int(mark.group(1))
        out += [(None, text[at : mark.start()]), (number, words[number - len(plain)] if number >= len(plain) else "")]
        at = mark.end()
    out.append((None, text[at:]))
    if [i for i, _ in out if i is not None and i < len(plain)] != list(range(len(messages))):
        roles = ", ".join(m.role for m in messages)
        raise ConfigError(f"the model's chat template leaves messages out or reorders them (roles: {roles})")
    return [(i, t) for i, t in out if i is not None or t]


def _plain(message: Message, content: str) -> dict[str, str]:
    """A message as chat templates take it; names and ids hold nothing that could be a special token."""
    told = {"role": message.role, "content": content}
    if message.role == "tool":
        told["name"] = re.sub(r"[^A-Za-z0-9_.-]", "", message.name)
        told["tool_call_id"] = re.sub("[^A-Za-z0-9]", "", message.call_id)[-9:].rjust(9, "0")
    return told


def _unspelled(value: Any, tokenizer: Any, words: list[str], first: int) -> Any:
    """A tool's description with marks, numbered from `first`, for what is spelled like special tokens; these go to
    `words`."""
    name = functools.partial(_unspelled, tokenizer=tokenizer, words=words, first=first)
    if isinstance(value, Mapping):
        return {name(key): name(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [name(inner) for inner in value]
    if not isinstance(value, str):
        return value
    special = sorted(_special(tokenizer), key=len, reverse=True)

    def marked(found: re.Match[str]) -> str:
        words.append(found[0])
        return _MARK.format(first + len(words) - 1)

    clean = value.replace("\ue000", "").replace("\ue001", "")
    return re.sub("|".join(map(re.escape, special)), marked, clean) if special else clean


def _special(tokenizer: Any) -> set[str]:
    """Spellings of all tokens that stand beside the vocabulary."""
    named = {t for t in tokenizer.all_special_tokens if t}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return named if backend is None else named | {t.content for t in backend.get_added_tokens_decoder().values()}


def _once(pieces: Sequence[str | PassageRef | _Trusted]) -> list[str | PassageRef | _Trusted]:
    seen: set[str] = set()
    out: list[str | PassageRef | _Trusted] = []
    for p in pieces:
        if isinstance(p, PassageRef):
            if p.id in seen:
                continue
            seen.add(p.id)
        out.append(p)
    return out


def _grouped(pieces: Sequence[str | PassageRef | _Trusted]) -> list[str | list[str]]:
    """Texts, and runs of passage ids; blanks between two passages are dropped, neighbouring texts joined."""
    out: list[str | list[str]] = []
    for i, p in enumerate(pieces):
        if isinstance(p, PassageRef):
            if out and isinstance(out[-1], list):
                out[-1].append(p.id)
            else:
                out.append([p.id])
        elif isinstance(p, _Trusted):
            out.append(p)
        elif not p.strip() and out and isinstance(out[-1], list) and _passage_follows(pieces[i + 1 :]):
            continue
        elif out and isinstance(out[-1], str) and not isinstance(out[-1], _Trusted):
            out[-1] += p
        elif p:
            out.append(p)
    return out


def _passage_follows(pieces: Sequence[str | PassageRef | _Trusted]) -> bool:
    for p in pieces:
        if isinstance(p, _Trusted) or (isinstance(p, str) and p.strip()):
            return False
        if isinstance(p, PassageRef):
            return True
    return False


def _laid(method: Method, groups: Sequence[str | list[str]], source: MemorySource, placing: Placing) -> Prompt:
    parts: list[Piece] = []
    position = rank = 0
    first = next((i for i, g in enumerate(groups) if isinstance(g, list)), None)
    if first is not None and method.prefix is not None and "".join(groups[:first]) == method.layout.prefix:  # type: ignore[arg-type]
        groups, first = groups[first:], 0  # the adapter's own prefix comes with the memory
    for i, group in enumerate(groups):
        if isinstance(group, list):
            recall = _recall(method, group, source, placing, position, opens=i == first, rank=rank)
            parts.append(recall)
            position, rank = recall.next_position, rank + len(group)
        else:
            rank = 0 if isinstance(group, _Trusted) else rank  # the next message
            ids = _ids(method, group, behind_memory=i > 0 and isinstance(groups[i - 1], list))
            if parts and isinstance(parts[-1], list):
                parts[-1] += ids
            else:
                parts.append(ids)
            position += len(ids)
    named = [passage_id for group in groups if isinstance(group, list) for passage_id in group]
    return Prompt(tuple(parts), texts=tuple(source.texts(named).values()))


def _ids(method: Method, text: str, *, behind_memory: bool) -> list[int]:
    backbone, before = method.backbone, method.layout.before
    if isinstance(text, _Trusted):
        return backbone.template(text)
    gap, plain = method.layout.separator, before and backbone.tokens(before) == backbone.template(before)
    evidence, found, question = text.partition(before) if behind_memory and plain else ("", "", "")
    if found and (not evidence or (gap and evidence.startswith(gap))):
        # Cut where the adapter's training data was cut; words of a message never become special tokens.
        quoted = evidence_ids(backbone, method.layout, evidence.removeprefix(gap))
        return [*quoted, *backbone.template(before), *backbone.tokens(question)]
    return backbone.tokens(text)


def _recall(
    method: Method, ids: list[str], source: MemorySource, placing: Placing, start: int, *, opens: bool, rank: int
) -> Recall:
    """Passages of ranks from `rank` on, best first, as one memory."""
    extents = source.extents(ids)
    own = [(kv.anchors, kv.source_len) for kv in method.ahead(start=start, opens=opens)]
    slots = sum(a for a, _ in (*own, *extents))
    span = sum(placing.extent(*extent) for extent in (*own, *extents))

    def load() -> Memory:
        device = method.backbone.device
        ranked = [[m.to(device=device) for m in parts] for parts in source.load(ids)]
        return method.passages(ranked, placing=placing, first=rank, start=start, opens=opens)

    key = (source.key, tuple(ids), placing, opens, rank)
    return Recall(key, start, start + span, slots, sum(n for _, n in extents), load)
