"""Who answers the questions of an evaluation: classes in a table, each saying what it sees of a passage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from sac_rag.answer.assemble import Assembled, text_prompt
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.base import Method
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.words import most, scores_of
from sac_rag.config import MAX_EVIDENCE, MAX_PASSAGE_TOKENS, AskConfig, check_ratio
from sac_rag.errors import ConfigError
from sac_rag.evaluate.tasks import Task
from sac_rag.records import Hit
from sac_rag.registry import Registry

if TYPE_CHECKING:
    from sac_rag.pipeline import SacRag

GOLD, MISMATCHED, RETRIEVED = "gold", "mismatched", "retrieved"
"""Where passages come from: the question's own, another's of the file, or a library."""
ANSWER_CHARACTERS = 400
"""An answer takes about as long as reading so many characters of context."""

READERS = Registry(
    "reader",
    {
        "closed": "sac_rag.evaluate.readers:Closed",
        "text": "sac_rag.evaluate.readers:Text",
        "memory": "sac_rag.evaluate.readers:Compressed",
        "mixed": "sac_rag.evaluate.readers:Mixed",
        "adapted": "sac_rag.evaluate.readers:Adapted",
        "full-ft": "sac_rag.evaluate.readers:FullFt",
        "words": "sac_rag.evaluate.readers:Words",
    },
)


class QuestionReader:
    """What an evaluation asks of a reader. Made by `reader_of`."""

    name: str
    tracks: ClassVar[Sequence[str]] = (GOLD, MISMATCHED, RETRIEVED)
    """Where its passages may come from."""
    looks: ClassVar[bool] = True
    """Whether it is shown a passage at all."""
    compressed: ClassVar[bool] = False
    """Whether it reads memory that a method compressed: a run for each ratio and adapter."""
    own_adapter: ClassVar[str] = ""
    """The method whose adapter reads in place of the one under test, in its own prompt."""
    at_ratios: ClassVar[bool] = False
    """Whether it has a run for each ratio, though it reads no memory of a method."""
    by_adapter: ClassVar[bool] = False
    """Whether an adapter's weights decide its answers; else its layout alone does."""
    reads: ClassVar[str] = "base"
    """What reads its prompts: as `AskConfig.reader`."""
    fidelity: ClassVar[str] = "text"
    """How retrieved passages are laid out for it: as `AskConfig.fidelity`."""
    mixes: ClassVar[bool] = False
    """Whether it goes by how many passages are read as text."""
    evidence: int = 0
    """Sentences of the passages in memory that it reads as text: as `AskConfig.evidence`."""
    wide: ClassVar[int] = 1
    """So many times more of its prompts are decoded together."""

    def label(self, method: str, ratio: float | None) -> str:
        """What it is called while it runs."""
        return self.name

    def cost(self, task: Task) -> int:
        """Estimated characters that it reads: what is cached once for all questions of a text."""
        return sum(len(text) for text, _ in task.contexts) + ANSWER_CHARACTERS * task.questions

    def write(self, method: Method, ids: Sequence[Sequence[int]], ratio: float | None) -> list[list[AnchorKV]] | None:
        """The memories of given contexts, in pieces; None for a reader of their text, or of nothing."""
        return None

    def assembled(self, rag: SacRag, method: Method, hits: Sequence[Hit], question: str, ask: AskConfig) -> Assembled:
        """The prompt of a question about retrieved passages."""
        return text_prompt(method, hits, question, reserve=ask.max_new_tokens)


class Closed(QuestionReader):
    """No passage: what the frozen model knows. Its prompts are short and its answers run to the token limit."""

    tracks = (GOLD, MISMATCHED)
    looks = False
    wide = 4

    def cost(self, task: Task) -> int:
        return ANSWER_CHARACTERS * task.questions


class Text(QuestionReader):
    """The frozen model reads the text, anew for each question."""

    def cost(self, task: Task) -> int:
        return sum(len(text) * len(qs) for text, qs in task.contexts) + ANSWER_CHARACTERS * task.questions


class Compressed(QuestionReader):
    """The frozen model reads compressed memory."""

    compressed = by_adapter = True
    fidelity = "memory"

    def label(self, method: str, ratio: float | None) -> str:
        more = f" + {self.evidence}" if self.evidence else ""
        return f"{method} {ratio:g}x{more}" if ratio else self.name

    def write(self, method: Method, ids: Sequence[Sequence[int]], ratio: float | None) -> list[list[AnchorKV]]:
        return written(method, ids, ratio or 1.0)

    def assembled(self, rag: SacRag, method: Method, hits: Sequence[Hit], question: str, ask: AskConfig) -> Assembled:
        return rag.assemble(hits, question, replace(ask, evidence=self.evidence))


class Mixed(Compressed):
    """The frozen model reads the best passages as text and the others as memory."""

    tracks = (RETRIEVED,)
    mixes = True
    fidelity = "mixed"

    def label(self, method: str, ratio: float | None) -> str:
        return f"{self.name} {ratio:g}x"


class Adapted(Compressed):
    """The adapter's own reader reads compressed memory."""

    reads = "adapter"

    def label(self, method: str, ratio: float | None) -> str:
        return f"{method} {ratio:g}x, {self.name}" if ratio else self.name


class FullFt(QuestionReader):
    """A finetuned model reads the text: the ceiling."""

    own_adapter = "full-ft"
    by_adapter = True

    def write(self, method: Method, ids: Sequence[Sequence[int]], ratio: float | None) -> list[list[AnchorKV]]:
        return written(method, ids, 1.0)


class Words(FullFt):
    """A finetuned model reads the words that a classifier keeps of the text: LLMLingua-2 as the paper has it (SAC,
    section 4.1), with the classifier that ships (`compress.words`)."""

    tracks = (GOLD, MISMATCHED)
    at_ratios = True

    def label(self, method: str, ratio: float | None) -> str:
        return f"{self.name} {ratio:g}x" if ratio else self.name

    def write(self, method: Method, ids: Sequence[Sequence[int]], ratio: float | None) -> list[list[AnchorKV]]:
        tokenizer, kept = method.backbone.tokenizer, []
        for context in ids:
            parts = [context[i : i + MAX_PASSAGE_TOKENS] for i in range(0, len(context), MAX_PASSAGE_TOKENS)]
            best = [most(scores_of(tokenizer, p), anchor_count(len(p), ratio or 1.0)).tolist() for p in parts]
            kept.append([part[i] for part, at in zip(parts, best, strict=True) for i in at])
        return written(method, kept, 1.0)


def reader_of(name: str) -> QuestionReader:
    """A reader by name, or NAME+N for one of memory that reads N sentences of the text beside it; raises ConfigError
    naming those there are."""
    base, plus, count = name.partition("+")
    reader: QuestionReader = READERS.load(base)()
    reader.name = name
    if plus:
        if not reader.compressed or not count.isdecimal() or not 1 <= int(count) <= MAX_EVIDENCE:
            raise ConfigError(f"reader is {name!r}; NAME+N is a reader of memory and 1..{MAX_EVIDENCE} sentences")
        reader.evidence = int(count)
    return reader


def check_readers(readers: Sequence[str], track: str, method: str, ratios: Sequence[float]) -> None:
    """Raises ConfigError for an unknown reader, one that has no place on a track, one of memory where `method` makes
    none, and a ratio out of range."""
    for name in readers:
        reader = reader_of(name)
        if track not in reader.tracks:
            known = ", ".join(n for n in READERS if track in reader_of(n).tracks)
            raise ConfigError(f"the reader {name} does not read {track} passages; use {known}")
        if reader.compressed and METHODS.load(method).reads_with_lora:
            raise ConfigError(
                f"method {method!r} reads whole texts, so there is no memory for the reader {name}: score it by "
                "`sac eval --reader full-ft`"
            )
    for ratio in ratios:
        check_ratio(ratio)


def ratios_of(method: str, ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios at which a method is scored: the given ones, or the only one that it has."""
    only: float | None = METHODS.load(method).only_ratio
    return tuple(map(float, ratios)) if only is None else (only,)


def written(method: Method, ids: Sequence[Sequence[int]], ratio: float) -> list[list[AnchorKV]]:
    """Memories of contexts at one ratio, long ones in pieces."""
    return method.compress_contexts([method.pieces(i) for i in ids], ratio)
