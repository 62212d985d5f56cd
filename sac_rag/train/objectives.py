"""What is learned from a batch of contexts: readings behind their memories, and which tokens carry loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Backbone, Reading
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import joined_ids
from sac_rag.train.data import TokenisedContext

NO_ANSWER = "The passages do not say."
"""What an adapter learns to answer when its memory holds other passages than the question is about."""


@dataclass
class Batch:
    """Contexts to compress, and per context the (token ids, first scored index, weight) to read behind it."""

    chunks: list[Sequence[int]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    readings: list[list[tuple[list[int], int, float]]] = field(default_factory=list)
    front: list[list[int]] = field(default_factory=list)
    """Per context: indices of all chunks in its memory, in order (distractors and itself)."""
    layouts: list[PromptLayout | None] = field(default_factory=list)
    """Per context: the layout that it is read in; None is the method's own."""
    examples: int = 0
    """Questions (qa) or texts (lm)."""

    @property
    def tokens(self) -> int:
        return sum(map(len, self.chunks)) + sum(len(ids) for rs in self.readings for ids, _, _ in rs)


@dataclass(frozen=True)
class Recipe:
    """Shares of the objectives within a QA step."""

    questions: int = 5
    """At most this many questions of a context share its encoder pass."""
    recall_weight: float = 0.25
    """Loss weight of a token of the recall objective; 0 leaves it out."""
    recall_tokens: int = 24
    """Tokens to continue from memory in one recall reading."""
    distractor_share: float = 0.0
    """Share of contexts whose memory also holds other contexts of the batch, shuffled."""
    max_distractors: int = 4
    """Most distractors in one memory."""
    layouts: tuple[PromptLayout, ...] = ()
    """Other layouts than the method's own, one drawn per context with `layout_share`."""
    layout_share: float = 0.0
    """Share of contexts that are read in one of `layouts`."""
    mismatch_share: float = 0.0
    """Share of contexts whose memory holds others in their place, with NO_ANSWER to be said."""


def question_batch(
    contexts: Sequence[TokenisedContext], ratios: Sequence[float], method: Method, recipe: Recipe, rng: random.Random
) -> Batch:
    """Questions of each context behind its memory; loss on answer and end only (SAC, section 4.1).

    A recall reading per context quotes a few tokens of it and scores their continuation: many more scored
    tokens for the price of one question, all of which must come from the memory.
    """
    backbone = method.backbone
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        other = rng.choice(recipe.layouts) if recipe.layouts and rng.random() < recipe.layout_share else None
        layout = other or method.layout
        ask, end = _asking(backbone, layout, own=other is None), backbone.template(layout.end)
        batch.chunks.append(c.ids)
        batch.ratios.append(ratio)
        batch.layouts.append(other)
        batch.front.append(_front(i, len(contexts), recipe, rng))
        pairs = rng.sample(c.pairs, min(recipe.questions, len(c.pairs)))
        if i not in batch.front[i]:
            pairs = [(q, backbone.tokens(NO_ANSWER)) for q, _ in pairs[:1]]
        readings = [([*(head := ask(q)), *a, *end], len(head), 1.0) for q, a in pairs]
        batch.examples += len(pairs)
        if recipe.recall_weight and i in batch.front[i] and len(c.ids) > recipe.recall_tokens + 16:
            cue = 8
            start = rng.randrange(len(c.ids) - recipe.recall_tokens - cue)
            piece = list(c.ids[start : start + cue + recipe.recall_tokens])
            head = ask(piece[:cue])
            readings.append(([*head, *piece[cue:]], len(head), recipe.recall_weight))
        batch.readings.append(readings)
    return batch


def _asking(backbone: Backbone, layout: PromptLayout, *, own: bool) -> Callable[[Sequence[int]], list[int]]:
    """What turns a question's ids into those between memory and answer."""
    if not own:
        return lambda q: joined_ids(backbone, layout, backbone.tokenizer.decode(list(q)))
    before, after = backbone.template(layout.before), backbone.template(layout.after)
    return lambda q: [*before, *q, *after]


def _front(i: int, contexts: int, recipe: Recipe, rng: random.Random) -> list[int]:
    """Whose memories stand in front of context i's questions, shuffled; without i where the passage is missing."""
    others = [j for j in range(contexts) if j != i]
    if others and rng.random() < recipe.mismatch_share:
        return rng.sample(others, rng.randint(1, min(recipe.max_distractors, len(others))))
    front = [i]
    if others and rng.random() < recipe.distractor_share:
        front += rng.sample(others, rng.randint(1, min(recipe.max_distractors, len(others))))
        rng.shuffle(front)
    return front


def continuation_batch(contexts: Sequence[TokenisedContext], ratios: Sequence[float]) -> Batch:
    """LM pretraining: the encoder reads the first half, every token of the second is scored (section 3.4)."""
    batch = Batch()
    for i, (c, ratio) in enumerate(zip(contexts, ratios, strict=True)):
        half = len(c.ids) // 2
        batch.chunks.append(c.ids[:half])
        batch.ratios.append(ratio)
        batch.readings.append([(list(c.ids[half:]), 1, 1.0)])
        batch.front.append([i])
        batch.layouts.append(None)
        batch.examples += 1
    return batch


def loss_of(batch: Batch, method: Method, *, placing: str = "source") -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean next-token cross-entropy (nats), and the plain mean over answers ("loss") for the log."""
    encoded = method.write(batch.chunks, batch.ratios)
    memories: list[Memory] = [
        method.memory([encoded[j] for j in front], placing=placing, layout=layout)
        for front, layout in zip(batch.front, batch.layouts, strict=True)
    ]
    readings, targets, weights = [], [], []
    for index, rows in enumerate(batch.readings):
        for ids, first, weight in rows:
            t = torch.tensor(ids)
            readings.append(Reading(t[:-1], torch.arange(first - 1, len(ids) - 1), index))
            targets.append(t[first:])
            weights += [weight] * (len(ids) - first)
    logits = method.backbone.read(memories, readings, use_lora=method.reads_with_lora)
    w = torch.tensor(weights, device=logits.device)
    ce = F.cross_entropy(logits.float(), torch.cat(targets).to(logits.device), reduction="none")
    loss = (ce * w).sum() / w.sum()
    plain = ce.detach()
    log = {"loss": float(plain[w == 1].mean())} if bool((w == 1).any()) else {}
    if bool((w != 1).any()):
        log["recall"] = float(plain[w != 1].mean())
    return loss, log
