"""What chat models, frameworks and servers ask of an open library: tags, prompts, replies, sizes.

The one door to the engine for all that stands outside of this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sac_rag.answer import gate
from sac_rag.answer.assemble import question_ids
from sac_rag.answer.chat import Content, MemorySource, Message, chat_prompt, layout_messages
from sac_rag.answer.constrained import Constraint
from sac_rag.answer.engine import Engine
from sac_rag.answer.focus import Text, best, focused, taken_up, with_evidence, without_passages
from sac_rag.answer.follow_up import lines_of
from sac_rag.answer.offered import Offered
from sac_rag.answer.passage_cache import PassageCache
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Sampling
from sac_rag.answer.reply import AsyncReply, Reply
from sac_rag.answer.service import Generation
from sac_rag.answer.small_talk import NOTICE as SMALL_TALK
from sac_rag.answer.tags import PassageRef, Tagger
from sac_rag.answer.tools import Calling, Tool, ToolFormat, calling
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.config import AskConfig, IndexConfig, check_history
from sac_rag.errors import ConfigError, LibraryLocked, SacError
from sac_rag.library.filters import plain
from sac_rag.library.joined import AnyLibrary
from sac_rag.models.embedder import Embedder
from sac_rag.records import Document, Passage, nfc
from sac_rag.text.passages import offsets_of, split


class Serving:
    """A library, its engine, and memories of passages that are in no library."""

    def __init__(self, library: AnyLibrary, engine: Engine, embedder: Embedder, config: IndexConfig) -> None:
        self.library, self.engine, self.embedder, self.config = library, engine, embedder, config
        self._gated = False
        self._tagger = Tagger(library.secret)
        self._loose, self._offered = PassageCache(), Offered.of(library.secret)

    def newest(self) -> AnyLibrary:
        """The library at its newest generation, for one request: what was removed meanwhile answers nothing more."""
        with contextlib.suppress(LibraryLocked):  # a writer has kept the catalog for a minute
            self.library.refresh()
        return self.library.pinned()

    # -- passages in messages ------------------------------------------------------------------------------

    def tag(self, passage_id: str) -> str:
        """A tag that stands for a passage's memory in any text: see `sac_rag.answer.tags`."""
        return self._tagger.tag(passage_id)

    def cite(self, text: str, *, where: Mapping[str, Any] | None = None) -> Content:
        """Text cut at the tags of this library, for a `Message`. where: only passages that fit this metadata filter."""
        return tuple(self._tagger.split(text, lambda i: self._loose.fits(i, where) or self.library.holds(i, where)))

    def stored_tag(self, name: str, text: str) -> str | None:
        """The tag of a text that the library holds under the id of a passage or the uri of a document; a line for each
        passage where it is several. None unless what is stored is this very text, but for white space between passages.
        """
        library, text = self.library, nfc(text)
        passages = library.get([name]) if library.holds(name) else library.passages(name)
        for some in (passages, *([p] for p in passages if p.text == text)):
            if some and _covers(some, text):
                return "\n".join(self.tag(p.id) for p in some)
        return None

    def offer(self, text: str, tag: str) -> None:
        """A passage, or several, was handed out as text: `recall` knows it again by that text."""
        self._offered.note(text, tag)

    def recall(
        self,
        text: str,
        *,
        where: Mapping[str, Any] | None = None,
        among: Callable[[str], bool] = lambda passage_id: True,
    ) -> Content:
        """As `cite`, also cut where the text of a passage stands that was handed out with `offer`, if it is `among`
        those that may be read."""

        def readable(tag: str) -> bool:
            parts = self.cite(tag, where=where)
            return all(not p.strip() if isinstance(p, str) else among(p.id) for p in parts)

        return self.cite(self._offered.put_in(text, readable), where=where)

    def altered(
        self,
        messages: Sequence[Message],
        *,
        where: Mapping[str, Any] | None,
        among: Callable[[str], bool] = lambda passage_id: True,
    ) -> int:
        """How many passages that were handed out, of those that may be read as in `recall`, stand in messages cut off,
        in another form or long after their search: they are read as text, which `conversation` can be told to notice.
        """

        read = {p.id for m in messages for p in m.content if not isinstance(p, str)}

        def readable(tag: str) -> bool:
            parts = self.cite(tag, where=where)
            return all(not p.strip() if isinstance(p, str) else p.id not in read and among(p.id) for p in parts)

        said = [p for m in messages if m.role != "assistant" for p in m.content if isinstance(p, str)]
        return self._offered.altered(said, readable)

    def remember(self, texts: Sequence[str], *, meta: Mapping[str, Any] | None = None) -> list[str]:
        """Compress texts that are in no library and return their ids, for `tag`; held in memory, not stored.

        meta: metadata for the filter of `cite`; without it they fit none. A text longer than a passage of the library
        is compressed as the passages that it would be stored as, under one id. The longest unused are forgotten beyond
        `PASSAGE_CACHE_BYTES`; their tags then stay text.
        """

        def cut(text: str) -> list[str]:
            if len(self.token_ids(text)) <= self.config.passage_tokens:
                return [text]
            return [p.text for p in self.split(Document("", text))]

        texts = [nfc(text) for text in texts]
        return self._loose.compress(texts, self.engine, self.config.ratio, cut, plain(meta) if meta else None)

    def best(self, content: Content, question: str) -> Content:
        """Content whose long texts, of more than one passage, are cut to the passages that fit a question best, as
        `conversation` cuts those of messages; it then names passages best first."""
        library = self.library.pinned()
        at, fit = functools.partial(self._text_at, library), functools.partial(self._closeness, library)
        return best(content, at, fit, AskConfig.k, lines_of(question))[0]

    def _text_at(self, library: AnyLibrary, content: Content, at: int) -> tuple[Text, int]:
        """The text of which a passage is the first in a prompt: what was remembered as one, or neighbours of one stored
        document that stand line by line, as `stored_tag` names them."""
        first = content[at]
        assert isinstance(first, PassageRef)
        found = [first.id]
        if len(parts := self._loose.passages(first.id)) > 1:
            return parts, at + 1
        while at + 2 < len(content) and content[at + 1] == "\n" and isinstance(after := content[at + 2], PassageRef):
            if not self._follow(library, found[-1], after.id):
                break
            found.append(after.id)
            at += 2
        return tuple(found), at + 1

    def _follow(self, library: AnyLibrary, first: str, second: str) -> bool:
        if not (library.holds(first) and library.holds(second)):
            return False
        one, other = library.get([first, second])
        return one.document == other.document and one.ordinal + 1 == other.ordinal

    def _closeness(self, library: AnyLibrary, ids: Sequence[str], lines: Sequence[str]) -> dict[str, float]:
        """Of each passage, stored or remembered, the highest cosine with any of the lines."""
        rows = self._loose.vectors(ids, self.embedder.encode)
        stored = [i for i in ids if i not in rows]
        rows |= dict(zip(stored, library.vectors(stored), strict=True)) if stored else {}
        asked = self.embedder.encode(lines, kind="query")
        return {i: float((asked @ rows[i]).max()) for i in ids}

    # -- replies -------------------------------------------------------------------------------------------

    def reply(
        self,
        messages: Sequence[Message] | Prompt,
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        timeout: float | None = None,
        reader: str = "base",
    ) -> Reply:
        """The assistant's next message, piece by piece. A conversation's next turn goes on from what was read.

        messages: or the prompt that `conversation` made of them. stop: strings that end it and are no part of it.
        timeout: seconds for all of it, TimeoutError beyond. reader: as in AskConfig. Raises as `conversation` does, and
        AdapterError for an adapter without a reader.
        """
        prompt, sampling = self._prompt(messages, sampling, reader), sampling or Sampling()
        return Reply.begin(self.engine.service_of(reader), prompt, sampling, stop=stop, timeout=timeout)

    async def areply(
        self,
        messages: Sequence[Message] | Prompt,
        sampling: Sampling | None = None,
        *,
        stop: Sequence[str] = (),
        timeout: float | None = None,
        reader: str = "base",
    ) -> AsyncReply:
        """As `reply`, without ever blocking the running event loop."""
        prompt = await asyncio.to_thread(self._prompt, messages, sampling, reader)
        return AsyncReply.begin(
            await asyncio.to_thread(self.engine.service_of, reader),
            prompt,
            sampling or Sampling(),
            stop=stop,
            timeout=timeout,
        )

    def converse(self, messages: Sequence[Message], sampling: Sampling | None = None) -> Generation:
        """As `reply`, token by token."""
        return self.engine.service.submit(self.conversation(messages, sampling), sampling or Sampling(), keep=True)

    def conversation(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[Tool] = (),
        history: str = "auto",
        small_talk: bool = True,
        reader: str = "base",
        evidence: int | None = None,
        altered: int = 0,
    ) -> Prompt:
        """The prompt of messages. tools: those that it tells of, see `calling`. altered: told in its notices.

        Of texts longer than a passage the passages are read that fit best what is asked. history: as in AskConfig,
        where passages come with the last turn or the system; otherwise all turns are read, as it may be answered from
        theirs. small_talk: read it without passages. reader, evidence: as in AskConfig, the sentences behind the
        passages of each message, or fewer where that does not fit. Raises ConfigError for messages that the chat
        template does not take or that do not fit the context.
        """
        check_history(history)
        self.check()
        library, given, notices = self.library.pinned(), list(messages), list[str]()
        calls = bool(tools) or any(m.calls or m.role == "tool" for m in messages)
        before = self.engine.method.layout.before
        if small_talk and not calls:
            messages = without_passages(messages, before, self.layout("", "")[:-1])
            notices += [SMALL_TALK] if messages != given else []
        if history == "auto" and not calls:
            messages = taken_up(messages, before)
        at, fit = functools.partial(self._text_at, library), functools.partial(self._closeness, library)
        if altered:
            how = "cut off, in another form or long after their search"
            notices.append(f"passages that stand here {how} are read as text: {altered}")
        messages, (read, there) = focused(messages, at, fit, AskConfig.k, before)
        if read < there:
            notices.append(f"of texts longer than a passage the passages that fit best are read, {read} of {there}")
        format = self.engine.tool_format if calls else None
        room = self.context_length - (sampling or Sampling()).max_new_tokens
        wanted = self.engine.evidence(AskConfig(reader=reader, evidence=evidence))
        with self.engine.busy(), torch.inference_mode():
            source = self._memory_source(library)
            for count in range(wanted, -1, -1):
                said, found = with_evidence(messages, source.texts, count, before, self.separator)
                prompt = chat_prompt(self.engine.method, said, source, tools=tools, format=format)
                position = prompt.extent(len(prompt.units()))[1]
                if position <= room:
                    break
        prompt = dataclasses.replace(prompt, notices=tuple(notices), evidence=found)
        if position > room:
            raise ConfigError(
                f"the conversation takes {position} positions, the model has {room} beside the answer: leave out old "
                "messages or passages"
            )
        return prompt

    def held_to(self, schema: Mapping[str, Any], ask: AskConfig | None = None) -> Constraint:
        """What holds an answer to a JSON schema while it is decoded, for `Sampling`; {"type": "object"} is any object.

        Objects hold no properties but those that the schema names, unless it says `additionalProperties`. ask: how the
        question is asked. Raises ConfigError for a schema that cannot be compiled or is too large, where llguidance
        (extra `tools`) is missing, and where the answer is to be judged by what was calibrated on free words.
        """
        if ask is not None and (ask.abstain or ask.fidelity == "auto"):
            raise ConfigError(
                "abstain and fidelity 'auto' were calibrated on answers in free words: leave them out beside a schema"
            )
        return Constraint(self.engine.grammars.grammar(schema))

    def calling(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        choice: str = "auto",
        schema: Mapping[str, Any] | None = None,
    ) -> Calling:
        """How tools are offered for the answer to these messages: `told` is for `conversation`, `constraint` for
        `Sampling`, and its `splitter` takes the call out of the text.

        choice: "auto", "any", "none" or a tool's name; schema: of an answer that is no call; see
        `sac_rag.answer.tools.calling`. Raises as `held_to` does.
        """
        asked = next((m.role == "user" for m in reversed(messages) if m.role != "system"), True)
        format = self.engine.tool_format if tools else ToolFormat()
        return calling(self.engine.grammars, format, tools, choice, schema, asked=asked)

    def _prompt(self, messages: Sequence[Message] | Prompt, sampling: Sampling | None, reader: str) -> Prompt:
        return messages if isinstance(messages, Prompt) else self.conversation(messages, sampling, reader=reader)

    def check(self) -> None:
        """Judge memories of this library on this machine, as before a first answer. Raises GateError: see `gate`."""
        if not self._gated:
            for part in self.library.parts:
                gate.check(self.engine, part)
            self._gated = True

    # -- sizes and layout ----------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The base model, as the library names it."""
        return self.engine.model_name

    @property
    def context_length(self) -> int:
        """Positions that the model reads."""
        return self.engine.method.backbone.context_length

    @property
    def prefix_tokens(self) -> int:
        """Positions that the adapter's own prefix takes up in front of a prompt's first memory."""
        prefix = self.engine.method.prefix
        return prefix.source_len if prefix is not None else 0

    @property
    def slot_bytes(self) -> int:
        """Bytes of keys and values of one cache slot in all heads, as the model computes."""
        layers, heads, width = self.engine.method.backbone.kv_shape
        return 2 * layers * heads * width * self.engine.dtype.itemsize

    @property
    def max_rows(self) -> int:
        """Answers made at the same time; more wait. All libraries of one model share it."""
        return self.engine.service.max_rows

    @max_rows.setter
    def max_rows(self, rows: int) -> None:
        if rows < 1:
            raise ConfigError(f"max_rows is {rows}; at least one answer must be made at a time")
        self.engine.limit_rows(rows)

    @property
    def load(self) -> tuple[int, int]:
        """(answers being made, answers that wait for a row), of all libraries of one model."""
        return self.engine.load

    def token_ids(self, text: str) -> list[int]:
        """Ids of the base model's tokenizer; special tokens that are spelled out in the text stay text."""
        with self.engine.busy():  # the tokenizer is shared, and not for two threads at once
            return self.engine.method.backbone.tokens(text)

    def extents(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        """(anchors, source tokens) of passages, stored or remembered; the latter are the positions they take up."""
        return self._extents(self.library, ids)

    def split(self, document: Document) -> list[Passage]:
        """The passages that a document would be stored as."""
        with self.engine.busy():
            offsets = offsets_of(self.engine.method.backbone.tokenizer)
            return split(document, offsets, max_tokens=self.config.passage_tokens, overlap=self.config.overlap)

    def layout(self, passages: str, question: str) -> list[tuple[str, str]]:
        """(role, text) of the messages that the adapter was trained with: `passages`, then the question."""
        with self.engine.busy():
            return layout_messages(self.engine.method, passages, question)

    @property
    def separator(self) -> str:
        """What stands between two passages in that layout."""
        return self.engine.method.layout.separator

    def fitting(self, sizes: Sequence[int], question: str, max_new_tokens: int) -> int:
        """How many leading passages, of so many positions each, fit the context with a question in that layout."""
        method = self.engine.method
        with self.engine.busy():
            room = self.context_length - max_new_tokens - len(question_ids(method, question))
            room -= len(method.backbone.template(method.layout.prefix))
            gap = len(method.backbone.template(method.layout.separator))
            if len(layout_messages(method, "", question)) == 1:
                room -= self.prefix_tokens  # it comes beside what such a template puts in front
        for count, size in enumerate(sizes):
            room -= size + (gap if count else 0)
            if room < 0:
                return count
        return len(sizes)

    # -- memories ------------------------------------------------------------------------------------------

    def _extents(self, library: AnyLibrary, ids: Sequence[str]) -> list[tuple[int, int]]:
        return [self._loose.extent(i) or library.extents([i])[0] for i in ids]

    def _memory_source(self, library: AnyLibrary) -> MemorySource:
        def load(ids: Sequence[str]) -> list[list[AnchorKV]]:
            held = {i: found for i in ids if (found := self._loose.get(i)) is not None}
            stored = [i for i in ids if i not in held]
            held |= {i: [m] for i, m in zip(stored, library.load(stored), strict=True)}
            return [held[i] for i in ids]

        def holds(passage_id: str) -> bool:
            return self._loose.extent(passage_id) is not None or library.holds(passage_id)

        def texts(ids: Sequence[str]) -> dict[str, str]:
            held = {i: said for i in ids if (said := self._loose.text(i)) is not None}
            stored = [i for i in ids if i not in held]
            with contextlib.suppress(SacError):  # a passage whose text is damaged may have a sound memory
                held |= {p.id: p.text for p in library.get(stored)}
            return {i: held[i] for i in ids if i in held}

        return MemorySource(library.secret.hex(), functools.partial(self._extents, library), load, holds, texts)


def _covers(passages: Sequence[Passage], text: str) -> bool:
    """Whether the passages are the text, but for white space between them."""
    base = passages[0].start - text.find(passages[0].text)
    done = 0
    for p in passages:
        start = p.start - base
        if start < 0 or text[start : start + len(p.text)] != p.text or text[done:start].strip():
            return False
        done = max(done, start + len(p.text))
    return not text[done:].strip()
