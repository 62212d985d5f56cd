"""Settings as frozen dataclasses. Every field is documented; unknown keys are fatal."""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sac_rag.errors import ConfigError, did_you_mean

T = TypeVar("T")

_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (numbers.Integral,),
    "float": (numbers.Real,),
    "str": (str,),
    "bool": (bool,),
    "None": (type(None),),
}

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_EMBEDDER = "all-minilm-l6-v2"
AUTO = "auto"
"""A codec that is chosen by the adapter; a library has one that has a name."""
MAX_EVIDENCE = 16
"""Most sentences that are read as text beside memory."""
MAX_PASSAGE_TOKENS = 510
"""Sub-context length of the paper: no passage and no compressed chunk is longer."""


def check_ratio(ratio: float) -> None:
    """Raises ConfigError for a number of source tokens per anchor that cannot be."""
    if not 1 <= ratio < math.inf:
        raise ConfigError(f"ratio is {ratio}; it must be at least 1 and finite (source tokens per anchor)")


def options_of(given: Sequence[str]) -> dict[str, Any]:
    """Keywords of a method, out of texts KEY=VALUE; a value is JSON, or a text as it stands.

    Raises ConfigError for what is not written so, and for a key that is given twice.
    """
    if not isinstance(given, list | tuple) or not all(isinstance(item, str) for item in given):
        raise ConfigError(f"option is {str(given)[:80]!r}; it must be texts key=value, such as even_heads=true")
    found: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"option is {item[:80]!r}; write key=value, such as even_heads=true")
        if key in found:
            raise ConfigError(f"option {key} is given twice, the second time as {value[:80]!r}; give it once")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


@dataclass(frozen=True)
class IndexConfig:
    """How documents become a library. Fixed for the life of the library."""

    model: str = DEFAULT_MODEL
    """Base model: a name of `sac models list`, a hub id, a folder, or a .gguf file (Llama, Mistral, Qwen2, Qwen3)."""
    embedder: str = DEFAULT_EMBEDDER
    """Sentence-transformers model for dense retrieval, named likewise."""
    method: str = "sac"
    """Compression method, by registry name: "sac", or one that needs no adapter, such as "kvzip"."""
    option: tuple[str, ...] = ()
    """Keyword of the method as KEY=VALUE, such as even_heads=true of kvzip; in place of its adapter's."""
    adapter: str = "default"
    """Adapter folder, or "default": the one shipped for this model and method; or "none": the method untrained."""
    ratio: float = 5.0
    """Source tokens per anchor: per slot that a head keeps, on average over heads."""
    codec: str = AUTO
    """How KV bytes are stored: "bf16", "int8" (per channel), "int4" (groups of 32), "transform" (in axes fitted to the
    adapter, entropy-coded; `sac codec`), or "auto": "transform" with an adapter that has such axes, as shipped ones do,
    else "bf16"."""
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
        options_of(self.option)
        object.__setattr__(self, "option", tuple(sorted(self.option)))


@dataclass(frozen=True)
class ReadConfig:
    """How files are read; what exceeds a limit is skipped with a reason. Not part of a library's settings."""

    encoding: str | None = None
    """Encoding of text files that are not UTF-8 and have no byte order mark, in place of what they declare; None goes
    by the declaration, else by what the bytes look like."""
    main_text: bool = False
    """Of web pages, read the main text alone, without menus, banners and footers (needs the package trafilatura)."""
    file_bytes: int = 20_000_000
    """Largest file that is read, in bytes."""
    text_chars: int = 5_000_000
    """Longest text of one file, in characters."""
    cpu_s: int = 60
    """Processor seconds that parsing one file may take."""
    wall_s: float = 120.0
    """Seconds that parsing one file may take."""
    memory_bytes: int = 1_073_741_824
    """Address space of the process that parses files, in bytes (not enforced on Windows and macOS)."""

    def __post_init__(self) -> None:
        for name in ("file_bytes", "text_chars", "memory_bytes"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.cpu_s < 0 or not 0 < self.wall_s < math.inf:
            raise ConfigError(f"cpu_s {self.cpu_s} must not be negative, and wall_s {self.wall_s} positive and finite")
        if self.encoding is not None and not is_text_encoding(self.encoding):
            raise ConfigError(f"encoding is {self.encoding!r}; use a name such as windows-1252, shift_jis or utf-16-le")


def is_text_encoding(name: str) -> bool:
    """Whether Python decodes text by this name; zlib, rot13 and the like are codecs too."""
    try:
        return bool(codecs.lookup(name)._is_text_encoding)  # type: ignore[attr-defined]
    except (LookupError, ValueError):
        return False


@dataclass(frozen=True)
class AskConfig:
    """How a question is answered."""

    k: int = 5
    """Passages put into memory."""
    min_score: float | None = None
    """Drop hits with a cosine similarity below this; None keeps all."""
    search: str = "hybrid"
    """"hybrid" (dense and BM25 fused by reciprocal rank), "dense" or "lexical"."""
    rerank: str | None = None
    """A cross-encoder that orders what the search has found: a folder, or a hub id that `sac models pull` has fetched.
    None leaves the search's order, or that of `SacRag.reranker`."""
    candidates: int = 20
    """Passages that a reranker chooses from, at least `k`."""
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
    evidence: int | None = None
    """Sentences of the passages in memory that are read as text beside it, those that share most words with the
    question; 0 are none, None is as what reads was trained."""
    reader: str = "base"
    """What reads memory: "base", the model as it is (the paper's), or "adapter", with the adapter's own reader where it
    has one: better answers from the same library, at the price of a second copy of the model in memory."""
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
    """Let the model answer alone where no passage was found or fits; otherwise the answer is that the passages do not
    say."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    history: str = "auto"
    """Which earlier turns of a conversation stand before the model: "auto" (those that a question refers back to, none
    where it stands by itself) or "all" (as many as fit)."""
    small_talk: bool = True
    """Let the model answer greetings and thanks ("Hello", "Thanks!") by itself, without a search; otherwise they are
    questions like any other."""
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
        if self.candidates < 1:
            raise ConfigError(f"candidates is {self.candidates}; a reranker needs at least 1")
        if self.evidence is not None:
            check_evidence(self.evidence)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        check_history(self.history)
        check_sampling(self.temperature, self.top_p, self.seed)
        if self.search not in ("hybrid", "dense", "lexical"):
            raise ConfigError(f"search is {self.search!r}; use hybrid, dense or lexical")
        if self.fidelity not in ("memory", "text", "mixed", "auto"):
            raise ConfigError(f"fidelity is {self.fidelity!r}; use memory, text, mixed or auto")
        if self.reader not in ("base", "adapter"):
            raise ConfigError(f"reader is {self.reader!r}; use base or adapter")
        if self.reader == "adapter" and self.fidelity in ("auto", "text"):
            raise ConfigError(
                f"reader is 'adapter', which fidelity {self.fidelity!r} does not go with: text is read with the model "
                "as it is; leave one of them out"
            )
        if self.evidence and self.fidelity == "auto":
            raise ConfigError(
                f"evidence is {self.evidence}, which fidelity 'auto' does not go with: whether text would answer "
                "better was calibrated on memory alone; leave one of them out"
            )
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


def check_evidence(count: int) -> int:
    """The number itself; ConfigError for what is none, or is out of range."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_EVIDENCE:
        raise ConfigError(f"evidence is {count!r}; it is a number of sentences, 0..{MAX_EVIDENCE}")
    return count


def check_history(history: str) -> None:
    """Raises ConfigError for what says not which earlier turns are read."""
    if history not in ("auto", "all"):
        raise ConfigError(f"history is {history!r}; use auto or all")


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
            hint = did_you_mean(key, known)
            raise ConfigError(f"unknown setting {key!r} for {cls.__name__}.{hint} Known: {', '.join(sorted(known))}.")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        if not _fits(value, kinds[key]):
            raise ConfigError(f"{key} is {str(value)[:80]!r} ({type(value).__name__}); it must be {kinds[key]}")
    return cls(**values)


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a field's type, as written; kinds that are no plain ones are left to their class."""
    kinds = kind.split(" | ")
    if not set(kinds) <= _PLAIN.keys():
        return True
    return any(isinstance(value, _PLAIN[k]) and (k == "bool" or not isinstance(value, bool)) for k in kinds)


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of JSON-able parts, independent of their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
