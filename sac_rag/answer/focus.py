"""What of messages a model is given: the turns that the last question takes up, and the best passages of long texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from sac_rag.answer.chat import Content, Message
from sac_rag.answer.follow_up import lines_of, refers_back, thread
from sac_rag.answer.small_talk import is_small_talk
from sac_rag.answer.tags import PassageRef
from sac_rag.records import Evidence
from sac_rag.text.evidence import evidence_lines, quoted

Text: TypeAlias = tuple[str, ...]
"""Ids of the passages that a text of a prompt is made of, in its order; more than one where it is a long text."""
TextAt: TypeAlias = Callable[[Content, int], tuple[Text, int]]
"""(content, where a passage stands in it) -> the text that begins there, and where it ends in the content."""
Closeness: TypeAlias = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""(passage ids, lines of what is asked) -> how well each passage fits them."""
LINES = 16
"""Lines of a message that are looked at for what it asks, from its end on."""


def asked(message: Message, before: str) -> str:
    """What a message says beside its passages. before: what the adapter's layout puts in front of a question."""
    text = "\n".join(p for p in message.content if isinstance(p, str)).strip()
    return text.removeprefix(before.strip()).strip() if before.strip() else text


def taken_up(messages: Sequence[Message], before: str) -> list[Message]:
    """Messages without the turns that the last one does not refer back to; those of the system stay.

    All of them where neither the last turn nor the system brings passages, as it may be answered from those of earlier
    turns, or where it has no words.
    """
    starts = _turns(messages)
    if not any(_brings(m) for n, m in enumerate(messages) if starts and (n >= starts[-1] or m.role == "system")):
        return list(messages)
    questions = [_said(messages[start:end], before) for start, end in pairwise([*starts, len(messages)])]
    if not questions[-1]:
        return list(messages)
    first = starts[-1 - thread(questions[:-1], questions[-1])]
    return [m for n, m in enumerate(messages) if n >= first or m.role == "system"]


def without_passages(messages: Sequence[Message], before: str, own: Sequence[tuple[str, str]]) -> list[Message]:
    """Messages whose last turn is small talk, as a chat without passages: that turn alone, behind those of the system
    that neither hold passages nor are the layout's `own`, (role, text). Others, and chats without passages, stay as
    they are."""
    starts = _turns(messages)
    words = _said(messages[starts[-1] :], before) if starts else ""
    if not is_small_talk(words):
        return list(messages)
    system = [m for m in messages if m.role == "system"]
    kept = [m for m in system if not _brings(m) and (m.role, "".join(map(str, m.content))) not in own]
    if len(kept) == len(system) and not any(map(_brings, messages)):
        return list(messages)
    return [*kept, Message("user", (words,))]


def focused(
    messages: Sequence[Message], text_at: TextAt, closeness: Closeness, most: int, before: str
) -> tuple[list[Message], tuple[int, int]]:
    """Messages with the `best` passages of their long texts, and how many of how many these are.

    What a message of the user asks is what it says; where that is no question, as around the result of a tool, or
    refers back, what the user said before too. Other messages serve what the user says last.
    """
    out, read, there = list[Message](), 0, 0
    for message, lines in zip(messages, _served(messages, before), strict=True):
        content, (kept, of) = best(message.content, text_at, closeness, most, lines)
        out.append(dataclasses.replace(message, content=content))
        read, there = read + kept, there + of
    return out, (read, there)


def with_evidence(
    messages: Sequence[Message], texts: Callable[[Sequence[str]], Mapping[str, str]], count: int, before: str, gap: str
) -> tuple[list[Message], tuple[Evidence, ...]]:
    """Messages whose passages are followed by the sentences of these, at most `count`, that fit what the message asks
    or serves, as for `focused`; and these sentences.

    texts: passage ids -> what those say whose text is known. gap: what stands in front of the sentences, as between two
    passages.
    """
    out, told = [], list[Evidence]()
    for message, lines in zip(messages, _served(messages, before), strict=True):
        places = [n for n, p in enumerate(message.content) if isinstance(p, PassageRef)]
        if places:
            ids = [p.id for p in message.content if isinstance(p, PassageRef)]
            found = quoted(list(texts(ids).items()), " ".join(_asking(lines)), count)
            end = places[-1] + 1
            said = (gap + evidence_lines(found),) if found else ()
            content = (*message.content[:end], *said, *message.content[end:])
            told += found
            message = dataclasses.replace(message, content=content)
        out.append(message)
    return out, tuple(told)


def _served(messages: Sequence[Message], before: str) -> list[list[str]]:
    """Lines of what each message asks or serves."""
    said = [lines_of(asked(m, before)) if m.role == "user" else [] for m in messages]
    served = []
    for number, message in enumerate(messages):
        lines = said[number]
        if message.role != "user":
            lines = next(filter(None, reversed(said)), [])
        elif not any("?" in line for line in lines) or any(map(refers_back, lines)):
            lines = [*next(filter(None, reversed(said[:number])), []), *lines]
        served.append(lines)
    return served


def _asking(lines: Sequence[str]) -> list[str]:
    """The last lines with a question mark; the last lines where none has one."""
    return [line for line in lines[-LINES:] if "?" in line] or list(lines[-LINES:])


def best(
    content: Content, text_at: TextAt, closeness: Closeness, most: int, lines: Sequence[str]
) -> tuple[Content, tuple[int, int]]:
    """Content whose long texts are cut to `most` passages together, or to one each where there are more texts, and how
    many passages of how many these are.

    Best first: of each text, in their order, the passage that fits the lines best (those with a question mark, if there
    are any), then the others as they fit. Where there is no long text, or nothing is asked, all stays as it is.
    """
    runs: list[str | list[Text]] = []
    gap: list[str] = []
    at = 0
    while at < len(content):
        piece = content[at]
        if isinstance(piece, PassageRef):
            text, at = text_at(content, at)
            gap = []
            if runs and isinstance(runs[-1], list):
                runs[-1].append(text)
            else:
                runs.append([text])
            continue
        if not piece.strip() and runs and isinstance(runs[-1], list):
            gap.append(piece)
        else:
            runs += [*gap, piece]
            gap = []
        at += 1
    runs += gap
    texts = [text for run in runs if isinstance(run, list) for text in run]
    long = dict.fromkeys(i for text in texts if len(text) > 1 for i in text)
    questions = _asking(lines)
    if not long or not questions:
        return content, (0, 0)
    fit = closeness(list(long), questions)
    first = dict.fromkeys(max(text, key=fit.__getitem__) if len(text) > 1 else text[0] for text in texts)
    rest = sorted((i for i in long if i not in first), key=lambda i: -fit[i])
    order = [*first, *rest[: max(0, most - len(first))]]
    out: list[str | PassageRef] = []
    for run in runs:
        if isinstance(run, str):
            out.append(run)
        else:
            ids = {i for text in run for i in text}
            out += [PassageRef(i) for i in order if i in ids]
    return tuple(out), (len(long.keys() & set(order)), len(long))


def _turns(messages: Sequence[Message]) -> list[int]:
    """Where turns begin: with a user's message behind none of the user's; nowhere if the last is not the user's."""
    if not messages or messages[-1].role != "user":
        return []
    return [n for n, m in enumerate(messages) if m.role == "user" and (not n or messages[n - 1].role != "user")]


def _said(turn: Sequence[Message], before: str) -> str:
    return "\n".join(asked(m, before) for m in turn if m.role == "user").strip()


def _brings(message: Message) -> bool:
    return any(isinstance(p, PassageRef) for p in message.content)
