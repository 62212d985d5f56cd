"""Plain data that travels between the rooms. No tensors, no behaviour, no imports of ours."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

NO_ANSWER = "The passages do not say."
"""What stands in place of an answer that is withheld; also what an adapter learns to say of passages without one."""


@dataclass(frozen=True)
class Document:
    """One readable source. `uri` is its identity in a library: for files the path as given, posix style."""

    uri: str
    text: str
    """The whole text, NFC, newlines as \\n. Character spans of passages index into it."""
    media_type: str = "text/plain"
    headings: tuple[tuple[int, str], ...] = ()
    """(character offset, heading path such as "Guide > Install"), ascending."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON values only."""
    shifts: tuple[tuple[int, int], ...] = ()
    """(offset in `text`, offset in the file): where both stop running alike, ascending. Empty where `text` is the file
    itself or was extracted."""


@dataclass(frozen=True)
class Passage:
    """A span of a document, at most 510 base-model tokens.

    `start` and `end` count characters of the file where the text is the file's own, as Python's text mode reads it (a
    UTF-8 byte order mark is a character, a line end is one), else of the extracted text. `text` is that span as NFC,
    words broken at line ends joined; where the document has no shifts, `text == document.text[start:end]`.
    """

    id: str
    """32 hex digits: SHA-256 of (document uri, text, occurrence of that text in the document), cut."""
    document: str
    """The uri of its document."""
    ordinal: int
    text: str
    start: int
    end: int
    heading: str = ""
    tokens: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hit:
    """A retrieved passage. Hits are in rank order, which is that of `fused` where two rankings were fused."""

    passage: Passage
    score: float
    """Similarity to the question, 0..1: the cosine, negative ones as 0; of a search without vectors, BM25 as a share of
    the most that the question's words could give."""
    dense: float | None = None
    """Cosine similarity, if the dense search found it."""
    lexical: float | None = None
    """BM25 score, if the lexical search found it."""
    fused: float | None = None
    """Score of reciprocal rank fusion, of a hybrid search; comparable within one search only."""
    reranked: float | None = None
    """What a reranker gave it; hits are then in this order. Comparable within one reranker only."""


class Read(Protocol):
    """What is known of a prompt's size: `sac_rag.answer.prompt.Prompt`."""

    @property
    def slots(self) -> int: ...
    @property
    def source_tokens(self) -> int: ...
    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True)
class Usage:
    """What the model attended and wrote, in tokens; where "auto" fell back to text, for both answers together."""

    anchors: int
    """Memory slots attended: anchors, and prefix tokens kept in front of them."""
    source_tokens: int
    """Document tokens that the anchors stand for, or that were read as text, in the answer that is given."""
    prompt_tokens: int
    """Tokens of the prompt, memory not counted; of a conversation, those of earlier turns are in the cache already."""
    completion_tokens: int
    reused: int = 0
    """Cache slots, of those attended, that an earlier turn had read already."""

    @classmethod
    def of(cls, prompt: Read, completion_tokens: int, reused: int = 0) -> Usage:
        """The usage of a prompt whose document tokens are those of its memories."""
        return cls(prompt.slots, prompt.source_tokens, prompt.tokens, completion_tokens, reused)

    @property
    def attended(self) -> int:
        """Cache slots that the first answer token attends: memory and prompt."""
        return self.anchors + self.prompt_tokens

    def account(self) -> dict[str, int]:
        """The same names in every shell: what was attended, how much of it is cached memory, what that stands for."""
        return {
            "attended_tokens": self.attended,
            "memory_tokens": self.anchors,
            "source_tokens": self.source_tokens,
            "completion_tokens": self.completion_tokens,
            "reused_tokens": self.reused,
        }


@dataclass(frozen=True)
class Timings:
    """Seconds since the question arrived, except retrieve_s and load_s, which are durations.

    first_token_s: when the first piece could be shown; of an answer that was held back, when it was let go.
    """

    retrieve_s: float
    load_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Heat:
    """What an answer attended, as shares of all attention, in the mean over its tokens, layers and heads."""

    anchors: tuple[tuple[tuple[int, int, float], ...], ...]
    """Of each source its anchors in reading order: (start, end) of the anchor's token in the passage's text, and its
    share, in the mean over the heads that hold it. Empty for a source that was read as text."""
    passages: float
    """The share of all anchors together; where all heads hold the same anchors, the sum of theirs."""
    prefix: float
    """That of the adapter's prefix, in front of them."""
    tokens: float
    """That of tokens: the question, its template, passages that were read as text, and the answer itself. The three sum
    to 1."""


@dataclass(frozen=True)
class Evidence:
    """A sentence that was read as text beside the memory of its passage: characters `start` to `end` of the passage's
    text."""

    passage: str
    """The id of its passage."""
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer with the passages that the model had before it, best first."""

    text: str
    sources: tuple[Hit, ...]
    usage: Usage
    timings: Timings
    notices: tuple[str, ...] = ()
    """What a user should know: passages dropped to fit the context, a fallback taken."""
    fidelity: str = "memory"
    """How the passages were read: "memory", "mixed" or "text"."""
    confidence: float = 0.0
    """Mean log-probability (nats) of the model's answer, its end included; that of `withheld` when it abstained."""
    doubtful: bool = False
    """Whether `confidence` lies below the adapter's threshold of doubt (`sac calibrate`): of such answers most are
    wrong. False where the adapter has no such threshold."""
    fell_back: bool = False
    """Whether the answer from memory was doubtful and this one is from text (fidelity "auto")."""
    abstained: bool = False
    """Whether `text` is NO_ANSWER: the model's answer was doubtful, or there was no passage and it was not asked."""
    withheld: str | None = None
    """The model's answer when that was doubtful."""
    finish_reason: str = "stop"
    """"length" where `max_new_tokens` cut the answer, else "stop"."""
    left_out: int = 0
    """Passages that were found and did not fit the model's context."""
    forgotten: int = 0
    """Earlier turns of the conversation that did not fit the model's context."""
    heat: Heat | None = None
    """What was attended, where that was asked for and passages were read as memory."""
    evidence: tuple[Evidence, ...] = ()
    """Sentences of the sources that were read as text beside their memories, in the order of the prompt."""

    def account(self) -> dict[str, Any]:
        """JSON, the same in every shell; "withheld" only if it abstained, "evidence", "notices" and "heat" if there
        are any. The passages of "evidence" are named by the "id" of "sources"."""
        found: dict[str, Any] = {
            "answer": self.text,
            "fidelity": self.fidelity,
            "confidence": self.confidence,
            "doubtful": self.doubtful,
            "fell_back": self.fell_back,
            "abstained": self.abstained,
            "finish_reason": self.finish_reason,
            "cut": {"passages": self.left_out, "turns": self.forgotten},
            "sources": [
                {
                    "id": hit.passage.id,
                    "document": hit.passage.document,
                    "start": hit.passage.start,
                    "end": hit.passage.end,
                    "score": hit.score,
                    "fused": hit.fused,
                    **({} if hit.reranked is None else {"reranked": hit.reranked}),
                    "text": hit.passage.text,
                }
                for hit in self.sources
            ],
            "usage": self.usage.account(),
            "timings": asdict(self.timings),
        }
        if self.abstained:
            found["withheld"] = self.withheld
        found |= told_of(self.evidence)
        if self.heat is not None:
            found["heat"] = {name: getattr(self.heat, name) for name in ("passages", "prefix", "tokens")}
            for source, anchors in zip(found["sources"], self.heat.anchors, strict=True):
                source["heat"] = [list(anchor) for anchor in anchors]
        return {**found, "notices": list(self.notices)} if self.notices else found


def told_of(evidence: Sequence[Evidence]) -> dict[str, Any]:
    """Sentences read beside memory as JSON, under the one name that every shell uses; nothing where there are none."""
    return {"evidence": [asdict(sentence) for sentence in evidence]} if evidence else {}


def nfc(text: str) -> str:
    """The form of Unicode in which texts are stored, asked and compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def unicode_of(text: str) -> str:
    """A text that every tokenizer takes: two surrogates become their character, a lone one U+FFFD.

    A client that cuts a text within an emoji leaves one, as do bytes of a command line that are no UTF-8.
    """
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
