"""A micro-batch: contexts to compress, readings behind their memories, which tokens carry loss, and that loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.backbone import Backbone, Reading
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import joined_ids


class Row(NamedTuple):
    """A text to read behind a memory, with loss on `ids[first:]`."""

    ids: list[int]
    first: int
    weight: float = 1.0
    recall: bool = False
    """Whether it continues a quoted piece of the context."""
    pair: tuple[list[int], list[int]] | None = None
    """Question and answer, where the answer is in the memory: what a teacher has a say in."""


@dataclass
class Batch:
    """Contexts to compress, and per context the rows to read behind it."""

    chunks: list[Sequence[int]] = field(default_factory=list)
    """What is compressed: contexts, the long ones as several sub-contexts."""
    ratios: list[float] = field(default_factory=list)
    """One per chunk."""
    pieces: list[list[int]] = field(default_factory=list)
    """Per context: indices of its chunks, in order."""
    front: list[list[int]] = field(default_factory=list)
    """Per context: indices of all contexts in its memory, in reading order (distractors and itself)."""
    biases: list[list[float]] = field(default_factory=list)
    """Per context: what is added to the attention scores of each of these."""
    readings: list[list[Row]] = field(default_factory=list)
    """Per context."""
    layouts: list[PromptLayout | None] = field(default_factory=list)
    """Per context: the layout that it is read in; None is the method's own."""
    asked: list[list[int]] = field(default_factory=list)
    """Per chunk: places that questions ask for (salience)."""
    examples: int = 0
    """Questions and texts to be quoted (qa, budget), questions (salience) or texts (lm)."""

    @property
    def tokens(self) -> int:
        """Tokens that pass through the model, written and read."""
        return sum(map(len, self.chunks)) + sum(len(row.ids) - 1 for row in self.rows)

    @property
    def rows(self) -> list[Row]:
        """The rows of all contexts, in order."""
        return [row for rows in self.readings for row in rows]

    def each(self, of: Callable[[Row], float | bool]) -> torch.Tensor:
        """A value of each row, for each of its scored tokens: (scored tokens,), on the CPU."""
        counts = torch.tensor([len(row.ids) - row.first for row in self.rows])
        return torch.tensor([of(row) for row in self.rows]).repeat_interleave(counts)

    def add(
        self,
        chunks: Sequence[Sequence[int]],
        ratio: float,
        front: list[int],
        rows: list[Row],
        biases: list[float] | None = None,
    ) -> None:
        """One more context."""
        self.pieces.append(list(range(len(self.chunks), len(self.chunks) + len(chunks))))
        self.chunks += chunks
        self.ratios += [ratio] * len(chunks)
        self.front.append(front)
        self.biases.append(biases or [0.0] * len(front))
        self.readings.append(rows)

    def written(
        self, method: Method, *, ratio: float | None = None, future_bias: float | None = None
    ) -> list[AnchorKV]:
        """Memories of the chunks, in order. ratio: in place of those of the contexts."""
        contexts = [[self.chunks[k] for k in pieces] for pieces in self.pieces]
        ratios = [self.ratios[pieces[0]] if ratio is None else ratio for pieces in self.pieces]
        return [kv for made in method.write(contexts, ratios, future_bias=future_bias) for kv in made]

    def memories(self, method: Method, written: Sequence[AnchorKV]) -> list[Memory]:
        """Each context's memory, of what was `written` of the chunks."""
        return [
            method.memory(
                [written[k] for j in front for k in self.pieces[j]],
                biases=[bias for j, bias in zip(front, biases, strict=True) for _ in self.pieces[j]],
                layout=layout,
            )
            for front, biases, layout in zip(self.front, self.biases, self.layouts, strict=True)
        ]

    def text(self, context: int, gap: Sequence[int]) -> list[int]:
        """Token ids of all that a context's memory is made of, `gap` between passages."""
        return joined([[t for k in self.pieces[j] for t in self.chunks[k]] for j in self.front[context]], gap)


def scored_logits(batch: Batch, method: Method, *, future_bias: float | None = None) -> torch.Tensor:
    """Logits (scored tokens, vocabulary) of all rows in order, each behind the memory of its context."""
    memories = batch.memories(method, batch.written(method, future_bias=future_bias))
    return method.read(memories, readings_of(batch))


def readings_of(batch: Batch) -> list[Reading]:
    """All rows in order, each behind its context's memory."""
    return [
        Reading(torch.tensor(row.ids[:-1]), torch.arange(row.first - 1, len(row.ids) - 1), index)
        for index, rows in enumerate(batch.readings)
        for row in rows
    ]


def token_losses(
    batch: Batch, method: Method, *, future_bias: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy (nats) of each scored token of all rows in order, and which of them recall the context: (tokens,)
    each."""
    return _token_losses(batch, scored_logits(batch, method, future_bias=future_bias))


def _token_losses(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.tensor([t for row in batch.rows for t in row.ids[row.first :]], device=logits.device)
    recall = batch.each(lambda row: row.recall).to(logits.device)
    return F.cross_entropy(logits.float(), targets, reduction="none"), recall


def answer_loss(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean cross-entropy (nats) of a batch's scored tokens, and for the log the plain means over answers
    ("loss") and quoted pieces ("recall"). logits: of all rows in order, (scored tokens, vocabulary)."""
    ce, recall = _token_losses(batch, logits)
    w = batch.each(lambda row: row.weight).to(logits.device)
    loss = (ce * w).sum() / w.sum()
    log = {
        name: float(ce.detach()[part].mean()) for name, part in (("loss", ~recall), ("recall", recall)) if part.any()
    }
    return loss, log


def asking(backbone: Backbone, layout: PromptLayout, *, own: bool = True) -> Callable[[Sequence[int]], list[int]]:
    """What turns a question's ids into those between memory and answer."""
    if not own:
        return lambda q: joined_ids(backbone, layout, backbone.tokenizer.decode(list(q)))
    before, after = backbone.template(layout.before), backbone.template(layout.after)
    return lambda q: [*before, *q, *after]


def joined(texts: Sequence[Sequence[int]], gap: Sequence[int]) -> list[int]:
    """Passages as one text."""
    ids = list(texts[0])
    for text in texts[1:]:
        ids += [*gap, *text]
    return ids
