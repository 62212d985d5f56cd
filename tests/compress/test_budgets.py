"""What each head keeps: the sums, the bounds, and what the scores do to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.anchor_kv import Slots
from sac_rag.compress.budgets import BUDGETS, Learned


class Shape:
    """All that a budget wants of a backbone."""

    kv_shape, device = (5, 3, 8), torch.device("cpu")


def learned(scores):
    budget = Learned(Shape())
    with torch.no_grad():
        budget.scores.copy_(torch.tensor(scores).view(5, 3))
    return budget


scores = st.lists(st.floats(-30, 30, width=32), min_size=15, max_size=15)


@given(scores, st.integers(1, 510), st.floats(0, 1))
def test_counts_add_up_and_no_head_keeps_more_than_there_is(values, length, share):
    count = max(1, round(share * length))
    for budget in (learned(values), BUDGETS.load("even")(Shape())):
        counts = budget(length, count)
        assert counts.dtype == torch.int64 and counts.shape == (5, 3)
        assert int(counts.sum()) == 15 * count and int(counts.min()) >= 0 and int(counts.max()) <= length
        assert torch.equal(counts, budget(length, count))


@given(scores, st.integers(20, 510), st.floats(0.01, 1))
def test_a_head_with_a_higher_score_keeps_no_less(values, length, share):
    counts = learned(values)(length, max(1, round(share * length))).flatten().tolist()
    order = sorted(range(15), key=lambda i: values[i])
    assert all(counts[a] <= counts[b] + 1 for a, b in zip(order, order[1:], strict=False)), "but for rounding"


def test_heads_are_alike_before_the_budget_is_fitted():
    assert Learned(Shape())(100, 20).unique().tolist() == [20]


def test_heads_that_need_little_keep_nothing():
    counts = learned([9.0] * 3 + [0.0] * 3 + [-9.0] * 9)(100, 20).flatten().tolist()
    assert min(counts[:3]) > 95 and counts[6:] == [0] * 9


@given(scores, st.floats(0.01, 0.99))
def test_shares_have_their_mean_whatever_the_scores(values, mean):
    budget = learned(values)
    shares = budget.shares(mean)
    assert abs(float(shares.detach().mean()) - mean) < 1e-6
    (gradient,) = torch.autograd.grad((shares * torch.arange(15.0).view(5, 3)).sum(), budget.scores)
    assert abs(float(gradient.double().sum())) < 1e-3, "all scores together have no effect"


def test_the_gradient_of_shares_is_that_of_small_steps():
    budget = learned([0.3 * i for i in range(15)])
    weights = torch.linspace(-1, 2, 15, dtype=torch.float64).view(5, 3) ** 3
    (gradient,) = torch.autograd.grad((budget.shares(0.2) * weights).sum(), budget.scores)
    step = 1e-2
    for i in (0, 7, 14):
        found = []
        for sign in (1, -1):
            moved = learned([0.3 * j + (sign * step if i == j else 0.0) for j in range(15)])
            found.append(float((moved.shares(0.2).detach() * weights).sum()))
        assert gradient.flatten()[i] == pytest.approx((found[0] - found[1]) / (2 * step), abs=1e-3)


def test_a_method_keeps_what_its_budget_says_and_the_best_tokens_by_its_selector(make_sac):
    method = make_sac(budget="learned", selector="salient", trained=True)
    with torch.no_grad():
        method.budget.scores.copy_(torch.tensor([[-9.0, 2.0], [0.0, -9.0], [1.0, 1.0]]))
    tokens = [10 + i % 50 for i in range(80)]
    (kv,) = method.compress([tokens], 5.0)
    counts = method.budget(80, 16)
    assert torch.equal(kv.counts, counts) and kv.anchors == 16
    assert counts[0, 0] == 0 and counts[2, 0] > counts[1, 0] > 0
    sizes = counts.flatten().tolist()
    for run, size in zip(kv.positions.split(sizes), sizes, strict=True):
        assert torch.equal(run, method.selector(tokens, size))


def test_what_a_budget_learned_goes_with_the_adapter_and_even_ones_add_nothing(make_sac, tmp_path):
    method, other = make_sac(budget="learned"), make_sac(budget="learned")
    torch.nn.init.normal_(method.budget.scores, generator=torch.Generator().manual_seed(1))
    adapter.save(method, Card(base="t", base_fingerprint="0", method="sac", ratios=(5.0,)), tmp_path)
    adapter.assign(other, adapter.read_tensors(tmp_path / "adapter.safetensors"), "here")
    assert torch.equal(other.budget.scores, method.budget.scores.bfloat16().float())
    assert not [n for n in make_sac().parameters() if n.startswith("budget.")]


def test_slots_know_their_anchors():
    slots = Slots.of([torch.tensor([1, 5]), torch.tensor([5]), torch.tensor([], dtype=torch.int64)], 3, 1)
    assert slots.anchors.tolist() == [1, 5] and slots.runs().tolist() == [0, 0, 1]
    assert slots.counts.tolist() == [[2], [1], [0]]
