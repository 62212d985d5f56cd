"""What every compression method offers: token ids in, AnchorKV out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.placing import Placing, compose
from sac_rag.config import MAX_PASSAGE_TOKENS

SELECTOR = "selector."
"""Begins the names of parameters that choose anchors: they are fitted in a stage of their own."""
BUDGET = "budget."
"""Begins the names of parameters that say what each head keeps: fitted in a stage of their own too."""


class Method(ABC):
    """A way to turn passages into memory for one backbone.

    Subclasses implement `write`; training differentiates through it, `compress` is its batched, checked,
    inference-only form.
    """

    name: str
    reads_with_lora = False
    """Whether the adapted weights also read the question (Full-FT alone)."""
    causal = False
    """Whether writing never sees later tokens, so that there is no future to open."""

    def __init__(self, backbone: Backbone, layout: PromptLayout) -> None:
        self.backbone, self.layout = backbone, layout
        self.placing = Placing()
        """How memories stand in a prompt; the adapter's card says."""
        self._prefixes: dict[str, AnchorKV] = {}

    @property
    def prefix(self) -> AnchorKV | None:
        """Uncompressed memory of the layout's prefix, placed in front of the first passage of every prompt."""
        return None

    def plain_prefix(self, layout: PromptLayout) -> AnchorKV | None:
        """What the base model makes of a layout's prefix: the same slots as reading it token by token."""
        if layout.prefix and layout.prefix not in self._prefixes:
            ids = torch.tensor(self.backbone.template(layout.prefix), dtype=torch.int64)
            with torch.no_grad():
                every = self.backbone.even(torch.arange(len(ids)))
                made = self.backbone.encode([ids], [every], causal=True, use_lora=False)
            self._prefixes[layout.prefix] = made[0]
        return self._prefixes[layout.prefix] if layout.prefix else None

    @abstractmethod
    def write(
        self, chunks: Sequence[Sequence[int]], ratios: Sequence[float], *, future_bias: float | None = None
    ) -> list[AnchorKV]:
        """Memories of chunks of at most 510 token ids, one ratio each, on the backbone's device, keys before RoPE.

        future_bias: added to the scores of later tokens while training opens them step by step; a method that is
        `causal` has no use for it.
        """

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Everything that training changes, by stable name."""

    def compress(
        self,
        chunks: Sequence[Sequence[int]],
        ratio: float,
        *,
        batch_tokens: int = 4096,
        done: Callable[[int], None] | None = None,
    ) -> list[AnchorKV]:
        """Memories of passages, in order, validated. Batches hold at most `batch_tokens` source tokens.

        done: called after each batch with the number of passages compressed.
        """
        out: list[AnchorKV] = []
        with torch.inference_mode():
            for batch in _batches(chunks, batch_tokens):
                out += [m.validate() for m in self.write(batch, [ratio] * len(batch))]
                if done:
                    done(len(out))
        return out

    def pieces(self, token_ids: Sequence[int]) -> list[Sequence[int]]:
        """A context as it is written: consecutive sub-contexts of at most 510 tokens (SAC, section 4.1)."""
        step = MAX_PASSAGE_TOKENS
        return [token_ids[i : i + step] for i in range(0, len(token_ids), step)]

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
        """`parts`, in reading order, placed and joined for the decoder, behind `prefix` where they are the first of a
        prompt (`opens`).

        biases: one a part, added to the attention scores of its slots. placing: in place of the method's own.
        layout: another layout than the method's own: its prefix, as the base model reads it, stands in front of both.
        """
        front = [p for p in (self.plain_prefix(layout) if layout else None, self.prefix if opens else None) if p]
        backbone = self.backbone
        return compose(
            [*front, *parts],
            backbone.inv_freq,
            placing=(placing or self.placing).positions,
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


def _batches(chunks: Sequence[Sequence[int]], budget: int) -> list[list[Sequence[int]]]:
    batches: list[list[Sequence[int]]] = []
    room = 0
    for chunk in chunks:
        if not batches or len(chunk) > room:
            batches.append([])
            room = budget
        batches[-1].append(chunk)
        room -= len(chunk)
    return batches
