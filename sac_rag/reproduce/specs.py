"""Runs as values: each holds all that determines its result, and names the runs that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sac_rag.registry import Registry

Pairs = tuple[tuple[str, Any], ...]
"""A mapping that can be hashed: sorted (name, value) pairs."""

KINDS = Registry(
    "kind of run",
    {
        "model": "sac_rag.reproduce.work.models:compute",
        "train": "sac_rag.reproduce.work.training:compute",
        "score": "sac_rag.reproduce.work.scoring:compute",
        "perplexity": "sac_rag.reproduce.work.perplexity:compute",
        "flops": "sac_rag.reproduce.work.flops:compute",
        "latency": "sac_rag.reproduce.work.latency:compute",
        "vectors": "sac_rag.reproduce.work.vectors:compute",
        "attention": "sac_rag.reproduce.work.attention:compute",
    },
)
"""Entries compute a run: (spec, place, listen, stop) -> result, JSON values by name."""


def pairs(values: Mapping[str, Any]) -> Pairs:
    """A mapping as settings hold it; lists become tuples."""
    return tuple(sorted((k, tuple(v) if isinstance(v, list | tuple) else v) for k, v in values.items()))


@dataclass(frozen=True)
class Spec:
    """A run."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        raise NotImplementedError

    @property
    def files(self) -> tuple[str, ...]:
        """Data files, relative to the folder of data, whose bytes are part of what it is."""
        return ()

    @property
    def models(self) -> tuple[str, ...]:
        """Base models whose weights are part of what it is."""
        return ()

    def before(self) -> Iterator[Spec]:
        """The runs that it needs, those they need first."""
        for name in (f.name for f in dataclasses.fields(self)):
            if isinstance(value := getattr(self, name), Spec):
                yield from value.before()
                yield value


@dataclass(frozen=True)
class Model(Spec):
    """A base model with some of another's layers: it stands in for one of a size that cannot be had."""

    kind: ClassVar[str] = "model"
    of: str
    share: float

    @property
    def label(self) -> str:
        return f"{self.share:.0%} of the layers of {self.of or 'the random model'}"

    @property
    def models(self) -> tuple[str, ...]:
        return (self.of,)


@dataclass(frozen=True)
class Train(Spec):
    """One stage of training, from nothing or from the adapter of another."""

    kind: ClassVar[str] = "train"
    system: str
    """Name of the system, for people."""
    method: str
    objective: str
    model: str | Model
    data: tuple[str, ...]
    """PATH=WEIGHT, patterns resolved."""
    settings: Pairs
    options: Pairs = ()
    lora: Pairs = ()
    layout: Pairs = ()
    """Strings of the prompt that are not the model's own."""
    start: Train | None = None

    @property
    def label(self) -> str:
        return f"train {self.system} {self.objective}"

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(spec.partition("=")[0] for spec in self.data)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else ()


@dataclass(frozen=True)
class Score(Spec):
    """A reader's answers to the questions of one file."""

    kind: ClassVar[str] = "score"
    system: str
    method: str
    reader: str
    """Of `sac eval`: memory, full-ft, text or closed."""
    file: str
    model: str | Model
    ratio: float | None = None
    limit: int | None = None
    seed: int = 0
    answer_tokens: int = 32
    context_tokens: int | None = None
    """Contexts are cut to so many tokens; None leaves them whole."""
    adapter: Train | None = None
    """None for a method without training."""

    @property
    def label(self) -> str:
        ratio = f" {self.ratio:g}x" if self.ratio else ""
        return f"score {self.system}{ratio} on {self.file}"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else ()


@dataclass(frozen=True)
class Perplexity(Spec):
    """How well texts are continued (lm) or said again (ae) behind their memory."""

    kind: ClassVar[str] = "perplexity"
    adapter: Train
    objective: str
    file: str
    ratio: float
    texts: int
    text_tokens: int
    bleu: bool = False
    """Whether the texts are also said again greedily and compared."""

    @property
    def label(self) -> str:
        return f"{self.objective} perplexity of {self.adapter.system} {self.ratio:g}x"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True)
class Flops(Spec):
    """Floating-point operations of compressing one sub-context with a model of some shape."""

    kind: ClassVar[str] = "flops"
    shape: Pairs
    """Fields of transformers' LlamaConfig."""
    way: str
    """Of `work.flops.WAYS`."""
    tokens: int
    ratio: float
    rank: int
    """Of the LoRA on all linear layers; 0 is none."""
    count: bool = True
    """Whether a model of this shape is run and its operations counted."""

    @property
    def label(self) -> str:
        return f"FLOPs of {self.way} at {self.ratio:g}x"


@dataclass(frozen=True)
class Latency(Spec):
    """Seconds to compress a batch of sub-contexts, several systems in turn within one run."""

    kind: ClassVar[str] = "latency"
    systems: tuple[str, ...]
    model: str
    ratio: float
    tokens: int
    batch: int
    rounds: int
    lora: Pairs = ()

    @property
    def label(self) -> str:
        return f"latency of {' and '.join(self.systems)}"

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)


@dataclass(frozen=True)
class Vectors(Spec):
    """Keys and values of a memory among those of the text itself, in two dimensions."""

    kind: ClassVar[str] = "vectors"
    adapter: Train
    file: str
    ratio: float
    points: int

    @property
    def label(self) -> str:
        return f"keys and values of {self.adapter.system} {self.ratio:g}x"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)


@dataclass(frozen=True)
class Attention(Spec):
    """Where the slots of a memory look while it is written."""

    kind: ClassVar[str] = "attention"
    adapter: Train
    file: str
    ratio: float
    tokens: int

    @property
    def label(self) -> str:
        return f"attention of {self.adapter.system} {self.ratio:g}x"

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)
