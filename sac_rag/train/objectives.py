"""What is learned from a batch of contexts: readings behind their memories, and which tokens carry loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import AnchorKV, Memory
from sac_rag.compress.backbone import Backbone, Reading
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.selectors import anchor_count
from sac_rag.compress.templates import joined_ids
from sac_rag.records import NO_ANSWER
from sac_rag.train.data import TokenisedContext

if TYPE_CHECKING:
    from sac_rag.train.teacher import Teacher

CUE = 8
"""Tokens that are quoted for the recall objective to go on from."""
QUOTED = 48
"""Tokens that are said of each piece of a text to be quoted."""
MARGIN = 256
"""Positions left for prefix, separators and an answer behind the passages of one memory."""


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
        return sum(map(len, self.chunks)) + sum(len(row.ids) - 1 for rows in self.readings for row in rows)

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


@dataclass(frozen=True)
class Shares:
    """Shares of the objectives within a QA step."""

    questions: int = 5
    """At most this many questions of a context share its encoder pass, of several joined ones so many times more."""
    recall_weight: float = 0.25
    """Loss weight of a token of the recall objective; 0 leaves it out."""
    quote_weight: float = 0.3
    """Loss weight of a token of a text to be quoted."""
    length_norm: float = 0.0
    """Loss weight of a token of an answer of n scored tokens: n to the power of -length_norm."""
    recall_tokens: int = 24
    """Tokens to continue from memory in one recall reading."""
    distractor_share: float = 0.0
    """Share of contexts whose memory also holds other contexts of the batch, shuffled."""
    max_distractors: int = 4
    """Most distractors in one memory."""
    rank_decay: float = 1.0
    """How fast the probability of a rank falls, for the passage that answers."""
    layouts: tuple[PromptLayout, ...] = ()
    """Other layouts than the method's own, one drawn per context with `layout_share`."""
    layout_share: float = 0.0
    """Share of contexts that are read in one of `layouts`."""
    mismatch_share: float = 0.0
    """Share of contexts whose memory holds others in their place, with NO_ANSWER to be said."""

    @property
    def recalled_above(self) -> int:
        """A context of more tokens than this has a recall reading, unless others stand in its place."""
        return self.recall_tokens + 2 * CUE


def question_batch(
    contexts: Sequence[TokenisedContext], ratios: Sequence[float], method: Method, shares: Shares, rng: random.Random
) -> Batch:
    """Questions of each context behind its memory; loss on answer and end only (SAC, section 4.1).

    A recall reading per context quotes a few tokens of it and scores their continuation: many more scored
    tokens for the price of one question, all of which must come from the memory. A text to be quoted is asked for
    piece by piece: autoencoding (ICAE, section 2.1), but from anywhere in the text. A method that reads with its own
    weights (Full-FT) gets several passages as one text. Texts without questions may leave a batch without readings.
    """
    backbone = method.backbone
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        other = rng.choice(shares.layouts) if shares.layouts and rng.random() < shares.layout_share else None
        layout = other or method.layout
        ask, end = asking(backbone, layout, own=other is None), backbone.template(layout.end)
        batch.layouts.append(other)
        front = _front(i, contexts, shares, rng)
        pairs = rng.sample(c.pairs, min(shares.questions * c.texts, len(c.pairs)))
        if c.quoted:
            front, rows = [i], [r._replace(weight=shares.quote_weight, recall=True) for r in _quotes(ask, c.ids, rng)]
        elif i in front:
            rows = [_answer(ask(q), [*a, *end], shares, pair=(q, a)) for q, a in pairs]
        else:
            rows = [_answer(ask(q), [*backbone.tokens(NO_ANSWER), *end], shares) for q, _ in pairs[:1]]
        batch.examples += 1 if c.quoted else len(rows)
        if shares.recall_weight and not c.quoted and i in front and len(c.ids) > shares.recalled_above:
            start = rng.randrange(len(c.ids) - shares.recall_tokens - CUE)
            piece = c.ids[start : start + CUE + shares.recall_tokens]
            rows.append(_quote(ask, piece)._replace(weight=shares.recall_weight, recall=True))
        room = backbone.context_length - max((len(r.ids) for r in rows), default=0)
        front = _fitting(front, i, [_extent(method, c, r) for c, r in zip(contexts, ratios, strict=True)], room)
        order, biases = method.placing.arranged(len(front))
        front = [front[r] for r in order]
        if method.reads_with_lora:
            text = joined([contexts[j].ids for j in front], backbone.template(layout.separator))
            batch.add([text], ratio, [i], rows)
        else:
            batch.add(method.pieces(c.ids), ratio, front, rows, biases)
    return batch


def _answer(
    head: Sequence[int], said: Sequence[int], shares: Shares, pair: tuple[list[int], list[int]] | None = None
) -> Row:
    """A question with what is to be said."""
    return Row([*head, *said], len(head), len(said) ** -shares.length_norm, pair=pair)


def _quote(ask: Callable[[Sequence[int]], list[int]], piece: Sequence[int]) -> Row:
    """The start of a piece of the context in a question's place, the rest to be said."""
    head = ask(piece[:CUE])
    return Row([*head, *piece[CUE:]], len(head))


def _quotes(ask: Callable[[Sequence[int]], list[int]], ids: Sequence[int], rng: random.Random) -> list[Row]:
    """Nearly all of a text, in pieces that begin anywhere."""
    step, last = CUE + QUOTED, len(ids) - 2 * CUE
    return [_quote(ask, ids[at : at + step]) for at in range(rng.randrange(max(1, min(step, last))), last + 1, step)]


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


def _front(i: int, contexts: Sequence[TokenisedContext], shares: Shares, rng: random.Random) -> list[int]:
    """Whose memories stand in front of context i's questions, by rank; without i where the passage is missing.

    Neighbours of i come before others.
    """
    others = [j for j in range(len(contexts)) if j != i]
    if others and rng.random() < shares.mismatch_share:
        return rng.sample(others, rng.randint(1, min(shares.max_distractors, len(others))))
    if not others or rng.random() >= shares.distractor_share:
        return [i]
    rng.shuffle(others)
    near = contexts[i].cluster
    others.sort(key=lambda j: not near or contexts[j].cluster != near)
    beside = others[: rng.randint(1, min(shares.max_distractors, len(others)))]
    rng.shuffle(beside)
    (rank,) = rng.choices(range(len(beside) + 1), [shares.rank_decay**r for r in range(len(beside) + 1)])
    return [*beside[:rank], i, *beside[rank:]]


def _extent(method: Method, context: TokenisedContext, ratio: float) -> int:
    """Positions that a context takes up as memory, as the method is placed."""
    length = len(context.ids)
    return method.placing.extent(anchor_count(length, ratio), length)


def _fitting(front: list[int], i: int, extents: Sequence[int], room: int) -> list[int]:
    """Without the last distractors that would push a question beyond the positions of the model."""
    kept, spare = list(front), room - MARGIN
    while len(kept) > 1 and sum(extents[j] for j in kept) > spare:
        kept.remove(next(j for j in reversed(kept) if j != i))
    return kept


def continuation_batch(contexts: Sequence[TokenisedContext], ratios: Sequence[float], method: Method) -> Batch:
    """LM pretraining: the encoder reads the first half, every token of the second is scored (section 3.4)."""
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        half = len(c.ids) // 2
        batch.add(method.pieces(c.ids[:half]), ratio, [i], [Row(list(c.ids[half:]), 1)])
        batch.layouts.append(None)
        batch.examples += 1
    return batch


def scored_logits(batch: Batch, method: Method, *, future_bias: float | None = None) -> torch.Tensor:
    """Logits (scored tokens, vocabulary) of all rows in order, each behind the memory of its context."""
    memories = batch.memories(method, batch.written(method, future_bias=future_bias))
    return method.backbone.read(memories, readings_of(batch), use_lora=method.reads_with_lora)


def readings_of(batch: Batch) -> list[Reading]:
    """All rows in order, each behind its context's memory."""
    return [
        Reading(torch.tensor(row.ids[:-1]), torch.arange(row.first - 1, len(row.ids) - 1), index)
        for index, rows in enumerate(batch.readings)
        for row in rows
    ]


def loss_of(
    batch: Batch,
    method: Method,
    *,
    future_bias: float | None = None,
    teacher: Teacher | None = None,
    distil_weight: float = 0.0,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean next-token cross-entropy (nats), plus `distil_weight` times the divergence from the teacher.

    For the log: the plain means over answers ("loss") and quoted pieces ("recall"), and the divergence ("distil").
    future_bias: as in `Method.write`. The batch must have readings.
    """
    rows = [row for rows in batch.readings for row in rows]
    logits = scored_logits(batch, method, future_bias=future_bias)
    loss, log = answer_loss(batch, logits)
    if teacher and distil_weight and any(row.pair for row in rows):
        counts = torch.tensor([len(row.ids) - row.first for row in rows])
        said = torch.tensor([row.pair is not None for row in rows]).repeat_interleave(counts).to(logits.device)
        apart = teacher.divergence(batch, logits[said])
        loss = loss + distil_weight * apart
        log["distil"] = float(apart.detach())
    return loss, log


def answer_loss(batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean cross-entropy (nats) of a batch's scored tokens, and for the log the plain means over answers
    ("loss") and quoted pieces ("recall"). logits: of all rows in order, (scored tokens, vocabulary)."""
    rows = [row for rows in batch.readings for row in rows]
    counts = torch.tensor([len(row.ids) - row.first for row in rows])
    targets = torch.tensor([t for row in rows for t in row.ids[row.first :]], device=logits.device)
    w = torch.tensor([row.weight for row in rows]).repeat_interleave(counts).to(logits.device)
    recall = torch.tensor([row.recall for row in rows]).repeat_interleave(counts).to(logits.device)
    ce = F.cross_entropy(logits.float(), targets, reduction="none")
    loss = (ce * w).sum() / w.sum()
    log = {
        name: float(ce.detach()[part].mean()) for name, part in (("loss", ~recall), ("recall", recall)) if part.any()
    }
    return loss, log
