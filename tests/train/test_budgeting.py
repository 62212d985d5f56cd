"""Fitting the budget: heads that answers need get more, nothing else moves, and a run goes on where it stopped."""

from __future__ import annotations

import random

import pytest
import torch

from sac_rag.compress.adapter import Card
from sac_rag.compress.anchor_kv import Memory
from sac_rag.compress.backbone import Reading
from sac_rag.errors import ConfigError
from sac_rag.train.batch import readings_of
from sac_rag.train.budgeting import budget_loss
from sac_rag.train.data import Mixture, Source, TokenisedContext
from sac_rag.train.loop import train
from sac_rag.train.objectives import configured
from sac_rag.train.objectives.base import loss_of
from sac_rag.train.objectives.questions import QuestionSettings, question_batch

CARD = Card(base="tiny", base_fingerprint="0", method="sac", ratios=(5.0,), options={"budget": "learned"})
CONFIG = configured(
    objective="budget", steps=4, step_tokens=400, accumulate=1, learning_rate=0.1, warmup=1, first_context=120,
    max_context=120, recall_weight=0.0, distractor_share=0.0, ratios=(2.0, 5.0), ratio_weights=(0.5, 0.5),
)  # fmt: skip


def questions_of(folder, method):
    return Mixture([Source(folder / "qa/squad.train.jsonl.gz", method.backbone.tokens)])


def batch_of(method, ratio=2.0):
    tokens = method.backbone.tokens
    pairs = {f"The {c} boat sails at {c * 3} each day.": ((tokens("When?"), tokens(c)),) for c in "xyz"}
    contexts = [TokenisedContext(tokens(text), asked) for text, asked in pairs.items()]
    settings = QuestionSettings(recall_weight=0.0, distractor_share=0.0)
    return question_batch(contexts, [ratio] * 3, method, settings, random.Random(0))


def test_with_all_of_it_the_loss_is_that_of_reading_everything(make_sac):
    method = make_sac(budget="learned", trained=True)
    batch = batch_of(method, ratio=1.0)
    with torch.no_grad():
        whole, _ = loss_of(batch, method)
        mixed, _ = budget_loss(batch, method)
    assert float(mixed) == pytest.approx(float(whole), abs=1e-4)


def test_a_share_mixes_the_attention_with_memory_and_without(make_sac):
    """One layer's head at 0, 1 and in between: the logits move from one to the other."""
    method = make_sac(budget="learned", trained=True)
    batch, backbone = batch_of(method), method.backbone
    with torch.no_grad():
        memories = [method.memory([kv]) for kv in batch.written(method, ratio=1.0)]
        bare = [method.memory(())] * 3
        readings = readings_of(batch)
        ones = torch.ones(3, *backbone.kv_shape[:2])
        whole = backbone.read(memories, readings)
        torch.testing.assert_close(backbone.read(memories, readings, without=bare, shares=ones), whole)
        none = backbone.read(memories, readings, without=bare, shares=0 * ones)
        starts = [Reading(r.token_ids, r.scored, r.memory) for r in readings]
        moved = [Memory(b.keys, b.values, b.counts, m.next_position, 0) for m, b in zip(memories, bare, strict=True)]
        torch.testing.assert_close(none, backbone.read(moved, starts), atol=1e-5, rtol=1e-4)
        half = backbone.read(memories, readings, without=bare, shares=ones / 2)
    assert not torch.allclose(half, whole, atol=1e-3) and not torch.allclose(half, none, atol=1e-3)


def test_the_budget_learns_and_nothing_else_moves(make_sac, data_folder, tmp_path):
    method = make_sac(budget="learned", selector="salient", trained=True)
    with torch.no_grad():
        method.budget.scores.zero_()
    before = {n: p.detach().clone() for n, p in method.parameters().items()}
    train(
        method,
        questions_of(data_folder, method),
        CONFIG,
        CARD,
        tmp_path / "out",
    )
    moved = {n for n, p in method.parameters().items() if not torch.equal(p, before[n])}
    assert moved == {"budget.scores"}
    questions = configured(steps=2, step_tokens=200, first_context=120, max_context=120, warmup=0, weight_decay=0.1)
    before = method.budget.scores.detach().clone()
    train(
        method,
        questions_of(data_folder, method),
        questions,
        CARD,
        tmp_path / "qa",
    )
    assert torch.equal(method.budget.scores, before)


def test_scores_rise_where_the_loss_falls(make_sac):
    """A step along the gradient lowers the loss of the same batch."""
    method = make_sac(budget="learned", trained=True)
    batch = batch_of(method, ratio=4.0)
    loss, _ = budget_loss(batch, method)
    (gradient,) = torch.autograd.grad(loss, method.budget.scores)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        method.budget.scores -= 0.2 * gradient / gradient.norm()
        after, _ = budget_loss(batch, method)
    assert float(after) < float(loss)


def test_a_method_without_a_budget_to_fit_is_refused(make_sac, data_folder, tmp_path):
    method = make_sac()
    with pytest.raises(ConfigError, match="--option budget=learned"):
        train(
            method,
            questions_of(data_folder, method),
            CONFIG,
            CARD,
            tmp_path / "out",
        )
