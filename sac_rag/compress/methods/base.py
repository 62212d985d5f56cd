"""What every compression method offers: token ids in, AnchorKV out; and what it says of itself."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.backbone import Backbone, LoraSpec, Reading
from sac_rag.compress.budgets import Budget
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.placing import Placing, compose
from sac_rag.compress.reader_adapter import ReaderAdapter
from sac_rag.compress.selectors import Selector
from sac_rag.config import MAX_PASSAGE_TOKENS

SELECTOR = "selector."
"""Begins the names of parameters that choose anchors: they are fitted in a stage of their own."""
BUDGET = "budget."
"""Begins the names of parameters that say what each head keeps: fitted in a stage of their own too."""

Chunk = Sequence[int]
"""Token ids of at most 510 consecutive tokens, unless a method's `pieces` says otherwise."""


class Method(ABC):
    """A way to turn contexts into memory for one backbone.

    Subclasses implement `write`; training differentiates through it, `compress` is its batched, checked,
    inference-only form. Options are keyword arguments of the constructor, with defaults. A method that writes every
    chunk by itself is a `PerChunk`, one that keeps some of the words a `KeepsText` (`methods.text`).
    """

    name: str
    made_for: ClassVar[Placing] = Placing()
    """How its memories stand in a prompt, unless an adapter's card says otherwise."""
    carries: ClassVar[str] = "kv"
    """"kv": keys and values that only a memory holds; "text": those of words of the context, as reading them gives."""
    trains: ClassVar[bool] = True
    """Whether it has weights to train, and so an adapter."""
    adapts: ClassVar[str] = "encoder"
    """What carries LoRA: "nothing", "encoder" (up to K and V of the last layer) or "whole" (`Backbone.hidden`)."""
    reads_with_lora: ClassVar[bool] = False
    """Whether the adapted weights also read the question (Full-FT alone)."""
    apart: bool = False
    """Whether chunks of one context are written without regard to each other, so that batches may part them."""
    causal = False
    """Whether writing never sees later tokens, so that there is no future to open."""
    only_ratio: ClassVar[float | None] = None
    """The one ratio that it writes at; None: any."""
    weighs: ClassVar[bool] = False
    """Whether what it keeps of a passage follows from the model's own numbers, so that other kernels may keep one or
    another token else; else it follows from token ids alone."""
    selector: Selector | None = None
    """What chooses the tokens it keeps, where they are chosen by one of `SELECTORS`."""
    budget: Budget | None = None
    """What shares out slots among heads, where one of `BUDGETS` does."""
    reader: ReaderAdapter | None = None
    """What reads behind its memories in place of the base model, where that is trained."""
    options: Mapping[str, Any]
    """The options it was made with, those left out with their defaults."""

    def __new__(cls, *_: Any, **options: Any) -> Self:
        self = super().__new__(cls)
        self.options = {**_defaults(cls), **options}
        return self

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        self.backbone, self.layout = backbone, layout
        self.placing = self.made_for
        self.evidence = 0
        """Sentences that are read as text beside memory, where a question does not say."""
        """How memories stand in a prompt; the adapter's card says."""
        self._prefixes: dict[str, AnchorKV] = {}

    # -- what it says of itself --------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """All that stored memory depends on besides the tensors of base model and adapter: JSON values by name.

        A library is opened against it. An option is named where it is not the default, so that libraries from before
        there was such an option still open.
        """
        usual = _defaults(type(self))
        found = {name: value for name, value in self.options.items() if name not in usual or value != usual[name]}
        spec = self.backbone.lora
        return found if spec is None or spec.alpha == LoraSpec().alpha else {**found, "lora_alpha": spec.alpha}

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Everything of its own that training changes, by stable name."""
        return {}

    def trained(self) -> Mapping[str, nn.Parameter]:
        """Its parameters, and those of its reader."""
        return {**self.parameters(), **(self.reader.parameters() if self.reader else {})}

    # -- reading memory ----------------------------------------------------------------------------------

    def read(self, memories: Sequence[Memory], readings: Sequence[Reading]) -> torch.Tensor:
        """Logits (scored tokens, vocabulary) of texts behind memories, as `Backbone.read`, by what reads for it."""
        backbone = self.reader.backbone if self.reader else self.backbone
        return backbone.read(memories, readings, use_lora=self.reads_with_lora or self.reader is not None)

    # -- writing memory ----------------------------------------------------------------------------------

    @abstractmethod
    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        """Memories of contexts, one for each of their chunks, on the backbone's device, keys before RoPE.

        contexts: each a list of consecutive chunks, which may share a budget or look at earlier ones. ratios: one a
        context. future_bias: added to the scores of later tokens while training opens them step by step; a method that
        is `causal` has no use for it.
        """

    def compress(
        self,
        chunks: Sequence[Chunk],
        ratio: float,
        *,
        batch_tokens: int = 4096,
        done: Callable[[int], None] | None = None,
    ) -> list[AnchorKV]:
        """Memories of passages, each a context of one chunk, in order; as `compress_contexts` otherwise."""
        made = self.compress_contexts([[c] for c in chunks], ratio, batch_tokens=batch_tokens, done=done)
        return [kv for (kv,) in made]

    def compress_contexts(
        self,
        contexts: Sequence[Sequence[Chunk]],
        ratio: float,
        *,
        batch_tokens: int = 4096,
        done: Callable[[int], None] | None = None,
    ) -> list[list[AnchorKV]]:
        """Memories of contexts, chunk by chunk, in order, validated. Batches hold at most `batch_tokens` source tokens,
        or one context.

        done: called after each batch with the number of chunks compressed.
        """
        units = [[c] for chunks in contexts for c in chunks] if self.apart else contexts
        out: list[AnchorKV] = []
        with torch.inference_mode():
            for batch in _batches(units, batch_tokens):
                for made, chunks in zip(self.write(batch, [ratio] * len(batch)), batch, strict=True):
                    out += [kv.validate() for kv, _ in zip(made, chunks, strict=True)]
                if done:
                    done(len(out))
        flat = iter(out)
        return [[next(flat) for _ in chunks] for chunks in contexts]

    def pieces(self, token_ids: Chunk) -> list[Chunk]:
        """A context as it is written: consecutive sub-contexts of at most 510 tokens (SAC, section 4.1)."""
        step = MAX_PASSAGE_TOKENS
        return [token_ids[i : i + step] for i in range(0, len(token_ids), step)]

    # -- placing memory ----------------------------------------------------------------------------------

    @property
    def prefix(self) -> AnchorKV | None:
        """Slots of the method's own in front of the first memory of any prompt; None: it has none."""
        return None

    def plain_prefix(self, layout: PromptLayout) -> AnchorKV | None:
        """What the model that reads makes of a layout's prefix: the same slots as reading it token by token."""
        if layout.prefix and layout.prefix not in self._prefixes:
            ids = torch.tensor(self.backbone.template(layout.prefix), dtype=torch.int64)
            with torch.inference_mode(False), torch.no_grad():
                every = self.backbone.even(torch.arange(len(ids)))
                made = self.backbone.encode([ids], [every], causal=True, use_lora=self.reads_with_lora)
            self._prefixes[layout.prefix] = made[0]
        return self._prefixes[layout.prefix] if layout.prefix else None

    def ahead(self, *, layout: PromptLayout | None = None, start: int = 0, opens: bool = True) -> list[AnchorKV]:
        """What stands in front of memories placed from position `start` on.

        A prompt in the method's own layout begins with its `prefix`, or with that of the layout as the base model reads
        it. Behind other words the prefix alone comes with the first memory (`opens`). layout: another one than the
        method's own: its prefix, as the base model reads it, stands in front of both.
        """
        own = self.prefix if opens else None
        if layout is not None:
            return [part for part in (self.plain_prefix(layout), own) if part is not None]
        if own is None and opens and start == 0:
            own = self.plain_prefix(self.layout)
        return [] if own is None else [own]

    def memory(
        self,
        parts: Sequence[AnchorKV],
        *,
        biases: Sequence[float] | None = None,
        placing: Placing | None = None,
        start: int = 0,
        layout: PromptLayout | None = None,
        opens: bool = True,
    ) -> Memory:
        """`parts`, in reading order, placed and joined for the decoder, behind what `ahead` says of these settings.

        biases: one a part, added to the attention scores of its slots. placing: in place of the method's own.
        """
        front = self.ahead(layout=layout, start=start, opens=opens)
        backbone = self.backbone
        return compose(
            [*front, *parts],
            backbone.inv_freq,
            placing=placing or self.placing,
            biases=[*[0.0] * len(front), *biases] if biases else None,
            scaling=backbone.rope_scaling,
            start=start,
            dtype=backbone.dtype,
        )

    def passages(
        self,
        ranked: Sequence[Sequence[AnchorKV]],
        *,
        placing: Placing | None = None,
        first: int = 0,
        start: int = 0,
        opens: bool = True,
    ) -> Memory:
        """The memory of retrieved passages, in the order and with the prior of `placing`.

        ranked: the memories of each passage, several where it is longer than one may be, best passage first.
        first: rank of the best of them. placing, start, opens: as in `memory`.
        """
        order, biases = (placing or self.placing).arranged(len(ranked), first)
        parts = [kv for i in order for kv in ranked[i]]
        each = [bias for i, bias in zip(order, biases, strict=True) for _ in ranked[i]]
        return self.memory(parts, biases=each, placing=placing, start=start, opens=opens)


class PerChunk(Method):
    """A method that writes each chunk by itself, whatever stands in its context: `write_chunks` says how."""

    apart = True

    def write(
        self, contexts: Sequence[Sequence[Chunk]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[list[AnchorKV]]:
        each = [(chunk, ratio) for chunks, ratio in zip(contexts, ratios, strict=True) for chunk in chunks]
        made = iter(self.write_chunks([c for c, _ in each], [r for _, r in each], future_bias=future_bias))
        return [[next(made) for _ in chunks] for chunks in contexts]

    @abstractmethod
    def write_chunks(
        self, chunks: Sequence[Chunk], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        """A memory for each chunk, one ratio each; as in `Method.write`."""


def parted(kv: AnchorKV, places: Sequence[torch.Tensor], lengths: Sequence[int]) -> list[AnchorKV]:
    """The memory of a context, the same in all heads, as one for each of its chunks.

    places: of each chunk the tokens that its slots stand for, ascending; lengths: tokens of each chunk.
    """
    grid = (*kv.counts.shape, -1, kv.keys.shape[1])
    sizes = [len(at) for at in places]
    keys, values = (t.view(grid).split(sizes, dim=2) for t in (kv.keys, kv.values))
    parts = zip(keys, values, places, lengths, strict=True)
    return [AnchorKV.even(k, v, at.to(kv.keys.device), n) for k, v, at, n in parts]


def _defaults(cls: type[Method]) -> dict[str, Any]:
    """Options of a method's constructor with their defaults."""
    known = inspect.signature(cls.__init__).parameters.values()
    return {p.name: p.default for p in known if p.kind is p.KEYWORD_ONLY}


def _batches(contexts: Sequence[Sequence[Chunk]], budget: int) -> list[list[Sequence[Chunk]]]:
    batches: list[list[Sequence[Chunk]]] = []
    room = 0
    for chunks in contexts:
        size = sum(map(len, chunks))
        if not batches or size > room:
            batches.append([])
            room = budget
        batches[-1].append(chunks)
        room -= size
    return batches
