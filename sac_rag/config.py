"""Settings as frozen dataclasses. Every field is documented; unknown keys are fatal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sac_rag.errors import ConfigError

T = TypeVar("T")

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"
MAX_PASSAGE_TOKENS = 510
"""Sub-context length of the paper: no passage and no compressed chunk is longer."""


def check_ratio(ratio: float) -> None:
    """Raises ConfigError for a number of source tokens per anchor that cannot be."""
    if not 1 <= ratio < math.inf:
        raise ConfigError(f"ratio is {ratio}; it must be at least 1 and finite (source tokens per anchor)")


@dataclass(frozen=True)
class IndexConfig:
    """How documents become a library. Fixed for the life of the library."""

    model: str = DEFAULT_MODEL
    """Base model: a name of `sac models list`, a hub id, a folder, or a .gguf file (Llama architecture)."""
    embedder: str = DEFAULT_EMBEDDER
    """Sentence-transformers model for dense retrieval, named likewise."""
    method: str = "sac"
    """Compression method, by registry name."""
    adapter: str = "default"
    """Adapter folder, or "default": the one shipped for this model and method."""
    ratio: float = 5.0
    """Source tokens per anchor: per slot that a head keeps, on average over heads."""
    codec: str = "bf16"
    """How KV bytes are stored: "bf16" or "int8" (per channel)."""
    passage_tokens: int = 256
    """Longest passage, in base-model tokens (at most 510)."""
    overlap: int = 0
    """Tokens shared by neighbouring passages."""

    def __post_init__(self) -> None:
        if not 16 <= self.passage_tokens <= MAX_PASSAGE_TOKENS:
            raise ConfigError(f"passage_tokens is {self.passage_tokens}; it must lie in 16..{MAX_PASSAGE_TOKENS}")
        if not 0 <= self.overlap < self.passage_tokens:
            raise ConfigError(f"overlap is {self.overlap}; it must lie in 0..{self.passage_tokens - 1}")
        check_ratio(self.ratio)


@dataclass(frozen=True)
class AskConfig:
    """How a question is answered."""

    k: int = 1
    """Passages put into memory. One is what the shipped adapter answers best from (docs/log.md)."""
    min_score: float | None = None
    """Drop hits with a cosine similarity below this; None keeps all."""
    search: str = "hybrid"
    """"hybrid" (dense and BM25 fused by reciprocal rank), "dense" or "lexical"."""
    placing: str | None = None
    """"source": each passage occupies its source length; "packed": as many positions as a head has slots of it; None
    is as the adapter was trained."""
    order: str | None = None
    """"best-last": the best passage stands nearest the question; "best-first": farthest from it; None is as the
    adapter was trained."""
    prior: float | None = None
    """How much lower ranked passages are held back: -prior * rank is added to their attention scores; 0 does not, None
    is as the adapter was trained."""
    fidelity: str = "memory"
    """How passages are read: "memory"; "text"; "mixed" (the best as text, the rest as memory); "auto" (memory, and
    text when that answer is doubtful; needs `sac calibrate`)."""
    text_passages: int = 1
    """Most passages that a mixed prompt holds as text, the best first."""
    text_tokens: int = 512
    """Most passage tokens that a mixed prompt holds as text."""
    text_score: float | None = None
    """Passages with a cosine similarity below this, or found by their words alone, are never text in a mixed prompt;
    None goes by rank alone."""
    abstain: bool = False
    """Say that the passages do not say, instead of a doubtful answer (needs `sac calibrate`)."""
    closed_book: bool = False
    """Let the model answer alone where no passage was found or fits; otherwise the passages are said not to say."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 is greedy; above, sampling."""
    top_p: float = 1.0
    """Nucleus sampling mass, used when temperature > 0."""
    seed: int | None = None
    """Seed of sampling; None draws afresh each time."""

    def __post_init__(self) -> None:
        check_k(self.k)
        if self.min_score is not None and not -1 <= self.min_score <= 1:
            raise ConfigError(f"min_score is {self.min_score}; a cosine similarity lies in -1..1, None keeps all")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        check_sampling(self.temperature, self.top_p, self.seed)
        if self.search not in ("hybrid", "dense", "lexical"):
            raise ConfigError(f"search is {self.search!r}; use hybrid, dense or lexical")
        if self.placing not in (None, "source", "packed"):
            raise ConfigError(f"placing is {self.placing!r}; use source or packed")
        if self.order not in (None, "best-last", "best-first"):
            raise ConfigError(f"order is {self.order!r}; use best-last or best-first")
        if self.prior is not None and not 0 <= self.prior < math.inf:
            raise ConfigError(f"prior is {self.prior}; it must be at least 0 and finite")
        if self.fidelity not in ("memory", "text", "mixed", "auto"):
            raise ConfigError(f"fidelity is {self.fidelity!r}; use memory, text, mixed or auto")
        if self.fidelity == "mixed" and self.text_score is not None and self.search == "lexical":
            raise ConfigError(
                f"text_score is {self.text_score}, a cosine similarity, and lexical search has none: use hybrid, dense"
            )
        if self.text_passages < 0 or self.text_tokens < 0:
            raise ConfigError(
                f"text_passages {self.text_passages} and text_tokens {self.text_tokens} must not be negative; 0 is none"
            )


def check_k(k: int) -> None:
    """Raises ConfigError for what is no number of passages."""
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise ConfigError(f"k is {k!r}, a {type(k).__name__}; give a whole number of passages, 1 or more")
    if k < 1:
        raise ConfigError(f"k is {k}; at least one passage must be asked for")


def check_sampling(temperature: float, top_p: float, seed: int | None) -> None:
    """Raises ConfigError for what no token can be drawn by."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ConfigError(f"temperature {temperature} must be at least 0 and finite, and top_p {top_p} in (0, 1]")
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}; it must be at least 0 and below 2**63")


def from_mapping(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build a config dataclass from plain values; an unknown key is a ConfigError that names it and its neighbours."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            import difflib

            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown setting {key!r} for {cls.__name__}.{hint} Known: {', '.join(sorted(known))}.")
    return cls(**values)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of JSON-able parts, independent of their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
