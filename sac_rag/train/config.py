"""Settings of a stage of training, and what follows from them at a step. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sac_rag.config import check_ratio
from sac_rag.errors import ConfigError
from sac_rag.train.data import kind_of


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training: of the selector ("salience"), of the budget ("budget"), on plain text ("lm") or on
    questions ("qa")."""

    objective: str = "qa"
    """"lm" (continue a text), "qa" (answer questions: of the file, or made out of any text) or "salience" (learn which
    tokens questions ask for: fits the selector alone) or "budget" (learn which heads need the memory: fits the budget
    alone)."""
    steps: int = 1000
    """Optimiser steps of this stage."""
    step_tokens: int = 800
    """Tokens (encoder and decoder together) of one micro-batch; contexts are drawn until it is full."""
    accumulate: int = 2
    """Micro-batches per optimiser step, shared out when several processes train together."""
    ratios: tuple[float, ...] = (2.0, 5.0, 15.0)
    """Ratios, one drawn per context."""
    ratio_weights: tuple[float, ...] = (0.15, 0.5, 0.35)
    """Their probabilities, up to a factor."""
    learning_rate: float = 8e-4
    """Peak rate of LoRA, anchor embedding and prefix."""
    warmup: int = 40
    """Steps of linear warm-up."""
    decay_from: float = 0.6
    """Share of the steps after which the rate falls linearly to a twentieth."""
    weight_decay: float = 0.01
    """AdamW weight decay on LoRA matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW moments (paper: 0.9, 0.95)."""
    clip: float = 1.0
    """Largest gradient norm."""
    max_context: int = 320
    """Longest context in tokens; longer ones are skipped (qa) or cut to windows (lm)."""
    first_context: int = 192
    """Limit at the first step; it grows linearly to `max_context` over the first half: short passages first."""
    recall_weight: float = 0.25
    """Loss weight of continuing a quoted piece of the context from memory; falls to a fifth over the stage."""
    quote_weight: float = 0.3
    """Loss weight of a token of a text to be quoted (quote:PATH); one of an answer has 1, or less by `length_norm`."""
    length_norm: float = 0.0
    """A token of an answer of n tokens has weight n to the power of -length_norm: at 0 all tokens are alike and long
    answers weigh most, at 1 all answers are."""
    distractor_share: float = 0.5
    """Share of contexts whose memory also holds others of the micro-batch, shuffled."""
    max_distractors: int = 4
    """Most others in one memory; from one to this many are drawn."""
    distractors_from: float = 0.5
    """Share of the stage after which distractors begin; 0 for an adapter that already reads one passage."""
    near_share: float = 0.0
    """Share of draws that bring neighbours: contexts of the same file that are most like the one drawn (BM25), with
    their own questions. They stand in one memory before others do."""
    near_most: int = 4
    """Most neighbours of one draw; from one to this many are drawn."""
    rank_decay: float = 1.0
    """The passage that answers has rank r among those of its memory with a probability that falls as rank_decay ** r,
    as a search would place it: 1 is any rank. What a rank does is the adapter's placing."""
    joined_share: float = 0.0
    """Share of contexts that are joined with the next of the micro-batch to one passage, where both fit into one: each
    time with another one, as passages of a document lie together."""
    joined_texts: int = 2
    """Most contexts that are joined to one passage."""
    prompts: tuple[str, ...] = ()
    """Names of other prompts than the adapter's own layout, of `sac_rag.compress.templates`."""
    prompt_share: float = 0.5
    """Share of contexts that are read in one of `prompts`."""
    mismatch_share: float = 0.0
    """Share of contexts whose questions stand behind other passages, with "The passages do not say." as the answer."""
    future_from: float = 0.0
    """Causal start: added to the encoder's scores of later tokens at the first step (such as -8), then less and less;
    0 is bidirectional from the first step. With objective "budget" it stays."""
    future_steps: int = 150
    """Steps after which nothing of it is left."""
    distil_weight: float = 0.0
    """Weight of the divergence from a --teacher on the answers' tokens, beside the cross-entropy."""
    start_share: float = 0.0
    """Share of the weights it began from in those it leaves behind (WiSE-FT, arXiv 2109.01903): both averaged serve the
    data of before and of now better than either. 0 leaves what was trained."""
    average_from: float = 1.0
    """Share of the steps after which the weights of all steps are averaged: the mean is what is left (Izmailov et al.,
    2018, arXiv 1803.05407). 1 leaves the last ones."""
    checkpoint_minutes: float = 4.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Order of data and all other chance."""

    def __post_init__(self) -> None:
        if self.objective not in ("lm", "qa", "salience", "budget"):
            raise ConfigError(f"objective is {self.objective!r}; use lm, qa, salience or budget")
        if self.steps < 1 or self.step_tokens < 64 or self.accumulate < 1:
            raise ConfigError(
                f"steps {self.steps}, step_tokens {self.step_tokens} (>= 64), accumulate {self.accumulate}"
            )
        if len(self.ratios) != len(self.ratio_weights) or not self.ratios:
            raise ConfigError(f"ratios {self.ratios} need one weight each, got {self.ratio_weights}")
        for ratio in self.ratios:
            check_ratio(ratio)
        if not -1e4 <= self.future_from <= 0:
            raise ConfigError(f"future_from is {self.future_from:g}; use 0, or a bias between -10000 and 0 such as -8")
        if self.future_from and self.objective != "budget" and not 1 <= self.future_steps <= self.steps:
            raise ConfigError(
                f"future_steps is {self.future_steps} of {self.steps} steps; it must lie in 1..{self.steps}, or the "
                "encoder would not end bidirectional"
            )
        if self.max_distractors < 1 or self.joined_texts < 2:
            raise ConfigError(f"max_distractors {self.max_distractors} (>= 1), joined_texts {self.joined_texts} (>= 2)")
        if not 0 <= self.length_norm <= 1:
            raise ConfigError(f"length_norm is {self.length_norm:g}; it must lie in 0..1")
        if self.near_most < 1 or not 0 < self.rank_decay <= 1 or not 0 <= self.average_from <= 1:
            raise ConfigError(
                f"near_most {self.near_most} (>= 1), rank_decay {self.rank_decay:g} (above 0, at most 1), average_from "
                f"{self.average_from:g} (0..1)"
            )
        if not 0 <= self.start_share < 1:
            raise ConfigError(f"start_share is {self.start_share:g}; it must be at least 0 and below 1")
        if not 0 <= self.distil_weight < math.inf or (self.distil_weight and self.objective != "qa"):
            raise ConfigError(
                f"distil_weight is {self.distil_weight:g} with objective {self.objective}; it is at least 0, and a "
                "teacher has a say in answers (qa) alone"
            )


def rate_at(step: int, c: TrainConfig) -> float:
    """Learning rate of a step: warm-up, constant, linear decay to 5 %."""
    start = c.decay_from * c.steps
    if step < c.warmup:
        return c.learning_rate * (step + 1) / c.warmup
    if step < start:
        return c.learning_rate
    return c.learning_rate * max(0.05, 1 - 0.95 * (step - start) / max(1.0, c.steps - start))


def future_at(step: int, c: TrainConfig) -> float | None:
    """The bias on later tokens at a step: linear from `future_from` to none at `future_steps`, or as it is where the
    encoder does not learn."""
    if c.objective == "budget":
        return c.future_from or None
    return c.future_from * (1 - step / c.future_steps) if c.future_from and step < c.future_steps else None


def sources_of(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Parse `PATH` or `PATH=WEIGHT` arguments; a `cloze:` or `quote:` in front stays with the path.

    What follows the last "=" is a weight when it is a number, else it belongs to the path. Raises ConfigError where
    it is neither: the path in front of it exists, the whole does not.
    """
    found = []
    for spec in specs:
        path, given, weight = spec.rpartition("=")
        try:
            found.append((path, float(weight)) if given else (spec, 1.0))
        except ValueError:
            if _exists(path) and not _exists(spec):
                raise ConfigError(f"weight {weight!r} in {spec!r} is not a number; write PATH or PATH=WEIGHT") from None
            found.append((spec, 1.0))
    return found


def _exists(path: str) -> bool:
    return os.path.exists(kind_of(path)[1])
