"""Turn after turn over a library: each question brings its passages, and what earlier turns read stays read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

from sac_rag.answer.assemble import Assembled
from sac_rag.answer.chat import Content, MemorySource, Message, chat_prompt, layout_messages
from sac_rag.answer.follow_up import searched, thread
from sac_rag.answer.tags import PassageRef
from sac_rag.compress.methods.base import Method
from sac_rag.compress.placing import Placing
from sac_rag.errors import ConfigError
from sac_rag.records import Hit
from sac_rag.text.evidence import evidence_lines, quoted

Turn: TypeAlias = tuple[Message, Message]
"""A question, with its passages in front, and its answer."""


MOST_TURNS = 64
"""Turns that a conversation keeps; older ones are forgotten."""


class Conversation:
    """Questions and answers so far, for `SacRag.ask` and `SacRag.stream`; one question at a time.

    A question that stands by itself is asked as without a conversation. One that refers back ("its moon?") is searched
    for by the words of the question that it refers to too, and asked behind that turn and those after it: the passages
    of each stand in front of its question as memories, each once. The last `MOST_TURNS` are kept.
    """

    def __init__(self, instructions: str = "") -> None:
        """instructions: a system message of one's own, behind the one that the adapter was trained with."""
        self.instructions = instructions
        self._turns: list[Turn] = []
        self._asked: tuple[list[Turn], Message] | None = None
        self._questions: list[str] = []
        """Of these turns, as they were asked."""
        self._words = ""

    def __len__(self) -> int:
        """Turns that the next question comes after."""
        return len(self._turns)

    def clear(self) -> None:
        """Begin afresh."""
        self._turns, self._asked, self._questions = [], None, []

    def searched(self, question: str) -> str:
        """What the next question is searched for by."""
        return searched(question, self._asked_so_far())

    def _asked_so_far(self) -> list[str]:
        """The questions of the turns, as they were asked."""
        return self._questions[-len(self._turns) :] if self._turns else []

    def add(self, answer: str) -> None:
        """The answer to what was last `assembled`; what did not fit beside it is forgotten."""
        if self._asked is not None:
            before, question = self._asked
            self._turns = [*before, (question, Message("assistant", (answer,)))][-MOST_TURNS:]
            self._questions = [*self._questions, self._words][-len(self._turns) :]
            self._asked = None

    def assembled(
        self,
        method: Method,
        hits: Sequence[Hit],
        texts: int,
        question: str,
        source: MemorySource,
        *,
        placing: Placing | None = None,
        reserve: int = 64,
        history: str = "auto",
        evidence: int = 0,
    ) -> Assembled:
        """The prompt of a next question over these hits, of which the first `texts` are read as text.

        history, evidence: as in AskConfig. Where all does not fit the context, the oldest turns are left out, and
        forgotten, then the lowest ranked hits; the last memory stays rather than sentences of it. reserve: tokens kept
        free for the answer. Raises ConfigError when the question alone is too long.
        """
        *front, (_, asked) = layout_messages(method, "", question)
        system = [Message(role, (text,)) for role, text in front]
        if self.instructions:
            system.append(Message("system", (self.instructions,)))
        limit = method.backbone.context_length - reserve
        taken = len(self._turns) if history == "all" else thread(self._asked_so_far(), question)
        aside = self._turns[: len(self._turns) - taken]
        whole, gone = _without_gone(self._turns[len(aside) :], source)
        turns, kept = whole, len(hits)
        while True:
            found = quoted([(h.passage.id, h.passage.text) for h in hits[texts:kept]], question, evidence)
            said = (method.layout.separator + evidence_lines(found),) if found else ()
            user = Message("user", (*_passages(hits[:kept], texts, method.layout.separator), *said, asked))
            prompt = chat_prompt(method, [*system, *(m for t in turns for m in t), user], source, placing=placing)
            position = prompt.extent(len(prompt.units()))[1]
            if position <= limit:
                break
            if turns:
                turns = turns[1:]
            elif found and kept == texts + 1:
                evidence = len(found) - 1
            elif kept:
                kept -= 1
            else:
                raise ConfigError(
                    f"the question takes {position} positions, the model has {limit} beside the answer: ask a shorter "
                    "question or lower max_new_tokens"
                )
        forgotten, read = len(whole) - len(turns), min(texts, kept)
        self._asked, self._words = (turns if forgotten else [*aside, *turns], user), question
        source_tokens = prompt.source_tokens + sum(len(method.backbone.tokens(h.passage.text)) for h in hits[:read])
        fidelity = "memory" if not read else "text" if read == kept else "mixed"
        notices = _notices(forgotten, len(hits) - kept, gone)
        earlier = any(len(asked.content) > 1 for asked, _ in turns)
        prompt = dataclasses.replace(prompt, evidence=found)
        return Assembled(prompt, tuple(hits[:kept]), source_tokens, fidelity, notices, earlier, forgotten)


def _passages(hits: Sequence[Hit], texts: int, separator: str) -> Content:
    """The first `texts` hits as text, the others as memories."""
    read = separator.join(h.passage.text for h in hits[:texts])
    memories = tuple(PassageRef(h.passage.id) for h in hits[texts:])
    return (*((read + separator if memories else read,) if read else ()), *memories)


def _without_gone(turns: list[Turn], source: MemorySource) -> tuple[list[Turn], int]:
    """Turns without the memories of passages that were removed from the library since, and how many these are."""
    named = {p.id for turn in turns for m in turn for p in m.content if isinstance(p, PassageRef)}
    gone = {i for i in named if not source.holds(i)}

    def left(message: Message) -> Message:
        content = tuple(p for p in message.content if not (isinstance(p, PassageRef) and p.id in gone))
        return Message(message.role, content)

    return [(left(asked), left(answer)) for asked, answer in turns] if gone else turns, len(gone)


def _notices(turns: int, passages: int, gone: int) -> tuple[str, ...]:
    notices = []
    if gone:
        notices.append(f"passages of earlier turns that the library does not hold any more, left out: {gone}")
    if turns:
        notices.append(f"the model's context is full; turns forgotten, the oldest first: {turns}")
    if passages:
        notices.append(f"passages that did not fit the model's context, the lowest ranked: {passages}")
    return tuple(notices)
