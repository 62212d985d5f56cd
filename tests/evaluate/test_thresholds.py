"""Thresholds on made-up confidences: found where they must be, measured as counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sac_rag.evaluate.runs import Prediction
from sac_rag.evaluate.thresholds import (
    Pairs,
    abstain_threshold,
    abstaining,
    curve,
    doubt_threshold,
    doubting,
    fallback_threshold,
    falling_back,
)
from sac_rag.records import NO_ANSWER


def pairs(own, other, f1=None, silent_own=(), silent_other=()):
    own, other = np.array(own, float), np.array(other, float)
    marks = [np.isin(np.arange(own.size), list(s)) for s in (silent_own, silent_other)]
    return Pairs(own, other, *marks, np.ones(own.size) if f1 is None else np.array(f1, float))


def noisy(n=200, seed=0):
    draw = np.random.default_rng(seed)
    own, other = -draw.exponential(0.6, n), -draw.exponential(1.5, n)
    return pairs(own, other, draw.random(n), silent_own=range(3), silent_other=range(40))


def test_separable_answers_are_told_apart_without_error():
    p = pairs([-0.1, -0.2, -0.3], [-0.9, -0.7, -2.0], [1, 0.5, 0])
    t = abstain_threshold(p)
    assert t == pytest.approx(-0.5)
    row = abstaining(p, t, reader="memory", ratio=5.0)
    assert (row.precision, row.recall, row.kept, row.auroc, row.n) == (1, 1, 1, 1, 3)
    assert row.f1_kept == row.f1_all == 0.5
    assert (row.precision_low, row.precision_high, row.recall_low, row.kept_low) == (1, 1, 1, 1)


def test_the_threshold_is_the_best_of_all():
    p = noisy()
    own, other = p.sure()

    def score(t):
        kept, wrong = (own >= t).sum(), (other >= t).sum()
        return 2 * kept / (kept + wrong + own.size)

    best = abstain_threshold(p)
    every = [*p.own, *p.other, -1e9, 0.0]
    assert score(best) >= max(map(score, every)) - 1e-12 and -3 < best < 0


@pytest.mark.parametrize("wanted", [0.6, 0.8, 1.0])
def test_a_wanted_precision_is_kept_and_used_up(wanted):
    p = noisy()
    own, other = p.sure()

    def withheld(t):
        return (own < t).sum() + (other < t).sum()

    def reached(t):
        return (other < t).sum() >= wanted * withheld(t) > 0

    t = abstain_threshold(p, wanted)
    if t is None:
        assert wanted == 1.0 and abstaining(p, None, reader="memory", ratio=5.0).precision == pytest.approx(40 / 43)
    else:
        assert reached(t)
        assert not [c for c in (*p.own, *p.other, 0.0) if reached(c) and withheld(c) > withheld(t)]


def test_never_where_sure_answers_are_the_wrong_ones():
    p = pairs([-2.0, -3.0], [-0.1, -0.2])
    assert abstain_threshold(p) is None
    row = abstaining(p, None, reader="text", ratio=None)
    assert row.threshold is None and row.precision is None and row.precision_low is None
    assert (row.recall, row.kept, row.auroc) == (0, 1, 0)


def test_shares_are_as_counted_and_lie_in_their_intervals():
    p = noisy()
    row = abstaining(p, -0.8, reader="memory", ratio=5.0)
    own, other = (p.own < -0.8) | p.silent_own, (p.other < -0.8) | p.silent_other
    assert row.precision == pytest.approx(other.sum() / (own.sum() + other.sum()))
    assert row.recall == pytest.approx(other.mean()) and row.kept == pytest.approx(1 - own.mean())
    assert row.f1_kept == pytest.approx(p.f1[~own].mean()) and row.f1_all == pytest.approx(p.f1.mean())
    wins = [(a > b) + 0.5 * (a == b) for a in p.sure()[0] for b in p.sure()[1]]
    assert row.auroc == pytest.approx(np.mean(wins))
    for name in ("precision", "recall", "kept", "f1_kept"):
        low, value, high = (getattr(row, name + end) for end in ("_low", "", "_high"))
        assert low < value < high and 0.02 < high - low < 0.25, name


def test_doubt_parts_right_answers_from_wrong_ones():
    own, other = [-0.1, -0.2, -0.3, -0.9] * 5, [-0.8, -1.0, -1.2, -0.15] * 5
    p = pairs(own, other, [1, 0.6, 0.5, 0.4] * 5, silent_other=[3, 7, 11, 15, 19])
    t = doubt_threshold(p)
    assert t == pytest.approx(-0.55), "an own answer of F1 0.4 is wrong, and the model's own NO_ANSWER is neither"
    row = doubting(p, t, reader="memory", ratio=5.0)
    assert (row.wrong, row.right, row.marked, row.unmarked, row.n) == (1, 0, 0, 1, 20)
    half = doubting(p, -0.25, reader="memory", ratio=5.0)
    assert (half.wrong, half.right, half.marked, half.unmarked) == (1, pytest.approx(1 / 3), 0.5, 1)
    assert half.right_low < half.right < half.right_high
    never = doubting(p, None, reader="memory", ratio=5.0)
    assert (never.wrong, never.right, never.marked, never.unmarked) == (0, 0, None, 0.75)


def test_the_threshold_of_doubt_is_the_best_of_all_and_no_luck():
    p = noisy()
    spoken, right = ~p.silent_own, p.f1 >= 0.5
    good, bad = p.own[spoken & right], np.concatenate((p.own[spoken & ~right], p.other[~p.silent_other]))

    def apart(t):
        return (bad < t).mean() - (good < t).mean()

    best = doubt_threshold(p)
    assert best is not None and apart(best) >= max(map(apart, [*good, *bad, 0.0])) - 1e-12 and -3 < best < 0
    found = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        found += doubt_threshold(pairs(-draw.random(60), -draw.random(60), draw.random(60))) is not None
    assert found <= 10, "one in forty by luck alone"
    assert doubt_threshold(pairs([-0.1, -0.2], [-1.0, -2.0], [0, 0])) is None, "none is right"


def test_falling_back_where_text_is_better():
    confidence = np.linspace(-3, -0.01, 300)
    memory = pairs(confidence, confidence, np.where(confidence < -1, 0.1, 0.9))
    text = pairs(confidence, confidence, np.full(300, 0.5))
    t = fallback_threshold(memory, text)
    assert t == pytest.approx(-1, abs=0.02)
    row = falling_back(memory, text, t, ratio=5.0)
    assert row.share == pytest.approx(2 / 3, abs=0.01) and row.f1_auto == pytest.approx(0.5 * row.share + 0.3, abs=0.01)
    assert row.f1_auto == pytest.approx(row.f1_memory + row.gain) and row.f1_auto > max(row.f1_memory, row.f1_text)
    assert 0 < row.gain_low < row.gain < row.gain_high
    never = falling_back(memory, text, None, ratio=5.0)
    assert (never.share, never.gain, never.gain_high) == (0, 0, 0) and never.f1_auto == never.f1_memory


def test_text_that_is_always_better_is_always_taken():
    confidence = -np.arange(1.0, 51)
    memory, text = (pairs(confidence, confidence, np.full(50, f1)) for f1 in (0.2, 0.6))
    assert fallback_threshold(memory, text) == 0.0
    assert falling_back(memory, text, 0.0, ratio=5.0).share == 1


def test_luck_alone_is_seldom_taken_for_a_gain():
    """Where text is neither better nor worse the best of all thresholds still looks good; one in 40 may pass."""
    random, taken, n = np.random.default_rng(0), 0, 300
    confidence = -np.arange(1.0, n + 1)
    for _ in range(400):
        memory, text = (pairs(confidence, confidence, random.integers(0, 2, n).astype(float)) for _ in range(2))
        taken += fallback_threshold(memory, text) is not None
    assert taken <= 20


def test_never_where_text_is_worse_or_its_gain_is_luck():
    confidence = -np.arange(1.0, 51)
    worse = fallback_threshold(*(pairs(confidence, confidence, np.full(50, f1)) for f1 in (0.6, 0.2)))
    assert worse is None
    lucky = np.zeros(50)
    lucky[[-1, 20]] = 1, -1  # the most doubtful question alone is better from text
    assert fallback_threshold(pairs(confidence, confidence, np.zeros(50)), pairs(confidence, confidence, lucky)) is None


def test_a_curve_goes_from_doubtful_to_sure():
    p = noisy(203)
    text = pairs(p.own, p.other, 1 - p.f1)
    rows = curve(p, text, ratio=15.0, bins=4)
    assert [r.n for r in rows] == [102, 102, 101, 101]
    assert all(a.high <= b.low for a, b in zip(rows, rows[1:], strict=False))
    assert rows[-1].answerable > rows[0].answerable
    assert sum(r.answerable * r.n for r in rows) == pytest.approx(203)
    total = sum(r.f1_memory * r.answerable * r.n for r in rows)
    assert total == pytest.approx(p.f1.sum())
    assert all(r.f1_text == pytest.approx(1 - r.f1_memory) for r in rows)


def test_predictions_are_paired_question_by_question():
    def prediction(qid, text, logprob):
        return Prediction(qid=qid, prediction=text, f1=0.25, em=0, rouge1=0, em_raw=0, logprob=logprob)

    own = [prediction("a", "Ada", -0.5), prediction("b", NO_ANSWER, -0.1)]
    p = Pairs.of(own, [prediction("a", "the passages do not say.", -0.2), prediction("b", "Quill", -0.3)])
    assert p.own.tolist() == [-0.5, -0.1] and p.f1.tolist() == [0.25, 0.25]
    assert [side.tolist() for side in p.abstained(None)] == [[False, True], [True, False]]
    assert [side.tolist() for side in p.abstained(-0.25)] == [[True, True], [True, True]]
    with pytest.raises(ValueError, match="same questions"):
        Pairs.of(own, own[::-1])
