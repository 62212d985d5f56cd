"""Plain data that travels between the rooms. No tensors, no behaviour, no imports of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True)
class Passage:
    """A span of a document, at most 510 base-model tokens. `text == document.text[start:end]`."""

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
    """A retrieved passage; `score` is comparable within one search only."""

    passage: Passage
    score: float
    dense: float | None = None
    """Cosine similarity, if the dense search found it."""
    lexical: float | None = None
    """BM25 score, if the lexical search found it."""


@dataclass(frozen=True)
class Usage:
    """What the model attended and wrote, in tokens."""

    anchors: int
    """Memory slots attended: anchors, and prefix tokens kept in front of them."""
    source_tokens: int
    """Document tokens that the anchors stand for (or that were read, for text answers)."""
    prompt_tokens: int
    """Tokens the decoder read in this call, memory not counted."""
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds since the question arrived, except retrieve_s and load_s, which are durations."""

    retrieve_s: float
    load_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Answer:
    """An answer with the passages that were in the model's memory, best first."""

    text: str
    sources: tuple[Hit, ...]
    usage: Usage
    timings: Timings
    notices: tuple[str, ...] = ()
    """What a user should know: passages dropped to fit the context, a fallback taken."""
