"""Salient anchors: the heaviest of chunks of equal weight, and scores that are learned from questions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sac_rag.compress import adapter
from sac_rag.compress.adapter import Card
from sac_rag.compress.selectors import heaviest, uniform


def by_hand(scores, weights, count):
    """One chunk after the other."""
    total, chunks = sum(weights), [[] for _ in range(count)]
    for i, w in enumerate(weights):
        middle = (sum(weights[:i]) + w / 2) / total * count
        chunks[min(int(middle), count - 1)].append(i)
    kept = {max(chunk, key=lambda i: scores[i]) for chunk in chunks if chunk}
    rest = sorted(set(range(len(scores))) - kept, key=lambda i: -scores[i])
    return sorted([*kept, *rest[: count - len(kept)]])


@given(st.data(), st.integers(1, 60))
def test_heaviest_is_the_best_of_each_chunk_of_equal_weight(data, length):
    count = data.draw(st.integers(1, length))
    scores = data.draw(st.lists(st.integers(-999, 999), min_size=length, max_size=length, unique=True))
    weights = data.draw(st.lists(st.sampled_from([0.03, 0.1, 0.5, 1.03, 8.0]), min_size=length, max_size=length))
    middle = (np.cumsum(weights) - np.array(weights) / 2) / sum(weights) * count
    assume(np.abs(middle - middle.round()).min() > 1e-9)  # on an edge the last bit of a sum decides
    got = heaviest(np.array(scores, dtype=float), np.array(weights), count)
    assert got.dtype == torch.int64 and got.tolist() == by_hand(scores, weights, count)


@given(length=st.integers(1, 300), share=st.floats(0.01, 1))
def test_tokens_that_are_alike_give_nearly_uniform_anchors(length, share):
    count = max(1, round(share * length))
    got = heaviest(np.zeros(length), np.ones(length), count)
    assert (got - uniform(length, count)).abs().max() <= 1


def test_a_token_that_counts_much_is_an_anchor_and_no_stretch_goes_without():
    scores = np.full(200, -4.0)
    scores[[3, 4, 5, 150]] = 3.0
    got = heaviest(scores, 1 / (1 + np.exp(-scores)) + 0.03, 20).tolist()
    assert {3, 4, 5, 150} <= set(got)
    assert max(b - a for a, b in zip([0, *got], [*got, 200], strict=True)) < 30


def test_salient_is_nearly_uniform_before_it_is_fitted_and_follows_its_scores_then(make_sac):
    selector = make_sac(selector="salient").selector
    tokens = [7 + i % 50 for i in range(100)]
    assert (selector(tokens, 20) - uniform(100, 20)).abs().max() <= 1
    with torch.no_grad():
        selector.token[11] = 9.0
    assert {i for i, t in enumerate(tokens) if t == 11} <= set(selector(tokens, 20).tolist())


def test_scores_see_two_tokens_on_either_side(make_sac):
    selector = make_sac(selector="salient").selector
    torch.nn.init.normal_(selector.out.weight, generator=torch.Generator().manual_seed(1))
    tokens = list(range(10, 40))
    changed = [*tokens[:15], 99, *tokens[16:]]
    moved = (selector.scores(tokens) != selector.scores(changed)).nonzero().flatten().tolist()
    assert moved == [13, 14, 15, 16, 17]


def test_what_the_selector_learned_goes_with_the_adapter(make_sac, tmp_path):
    method, other = make_sac(selector="salient"), make_sac(selector="salient")
    torch.nn.init.normal_(method.selector.token, generator=torch.Generator().manual_seed(1))
    card = Card(base="tiny", base_fingerprint="0", method="sac", ratios=(5.0,), options={"selector": "salient"})
    adapter.save(method, card, tmp_path)
    tensors = adapter.read_tensors(tmp_path / "adapter.safetensors")
    assert {"selector.window.weight", "selector.out.weight", "selector.token"} <= set(tensors)
    adapter.assign(other, tensors, "here")
    assert torch.equal(other.selector.token, method.selector.token.bfloat16().float())


@pytest.mark.parametrize("selector", ["uniform", "random"])
def test_plain_selectors_add_nothing_to_an_adapter(make_sac, selector):
    assert not [n for n in make_sac(selector=selector).parameters() if n.startswith("selector.")]
