"""Intervals, averages over sets and retention, against what statistics says they are."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean

import numpy as np
import pytest

from sac_rag.evaluate.runs import (
    Prediction,
    Run,
    Scored,
    difference,
    macro,
    resampled,
    summary,
    with_macro,
    with_shares,
)


def predictions(f1s):
    return tuple(
        Prediction(qid=str(i), prediction="", f1=f, em=float(f == 1), rouge1=f / 2, em_raw=0.0, logprob=-1.0)
        for i, f in enumerate(f1s)
    )


def scored(name, f1s, reader="memory", seconds=2.0, **fields):
    found = predictions(f1s)
    return Scored(Run(reader=reader, method="sac", ratio=5.0, **fields, **summary(found, name, seconds)), found)


def test_the_interval_of_a_share_is_the_binomial_one():
    n, p = 400, 0.3
    run = scored("a", [1.0] * int(n * p) + [0.0] * int(n * (1 - p))).run
    spread = 1.96 * math.sqrt(p * (1 - p) / n)
    assert run.f1 == pytest.approx(p) and run.em == pytest.approx(p) and run.rouge1 == pytest.approx(p / 2)
    assert (run.f1_low, run.f1_high) == pytest.approx((p - spread, p + spread), abs=0.008)
    assert (run.em_low, run.em_high) == (run.f1_low, run.f1_high)
    assert run.examples_per_s == n / 2.0 and run.n == n


def test_the_interval_narrows_with_the_root_of_the_questions_and_repeats():
    few, many = (scored("a", [0.0, 0.5, 1.0, 0.2] * k).run for k in (10, 160))
    assert (few.f1_high - few.f1_low) / (many.f1_high - many.f1_low) == pytest.approx(4, rel=0.2)
    assert scored("a", [0.0, 0.5, 1.0, 0.2] * 10).run == few
    assert scored("b", [0.0, 0.5, 1.0, 0.2] * 10).run.f1_low != few.f1_low
    same = scored("a", [0.25] * 7).run
    assert same.f1_low == same.f1 == same.f1_high == 0.25


def test_readers_of_one_set_are_resampled_alike():
    values = np.random.default_rng(0).random((50, 1))
    assert np.allclose(resampled(values, "a") + 1, resampled(values + 1, "a"))


def test_macro_counts_each_set_alike_and_resamples_within_sets():
    small = scored("a", [1.0, 0.0] * 10, seconds=1.0, peak_mib=10.0, cut=1, bytes_per_source_token=100.0)
    large = scored("b", [0.5] * 200, seconds=4.0, peak_mib=30.0, cut=2, bytes_per_source_token=300.0)
    run = macro([small, large])
    assert (run.set, run.reader, run.method, run.ratio, run.n) == ("macro", "memory", "sac", 5.0, 220)
    assert run.f1 == pytest.approx(0.5) and run.em == pytest.approx(0.25)
    assert (run.seconds, run.examples_per_s, run.peak_mib, run.cut) == (5.0, 44.0, 30.0, 3)
    assert run.bytes_per_source_token == 200.0
    # The second set does not vary, so half of the first one's spread is left. Pooled questions would leave 1/11.
    alone = small.run.f1_high - small.run.f1_low
    assert run.f1_high - run.f1_low == pytest.approx(alone / 2)


def test_the_draws_of_two_sets_are_independent():
    halves = [1.0, 0.0] * 100
    alone, both = scored("a", halves).run, macro([scored("a", halves), scored("b", halves)])
    assert (both.f1_high - both.f1_low) / (alone.f1_high - alone.f1_low) == pytest.approx(1 / math.sqrt(2), rel=0.1)


def test_retention_is_the_share_of_full_ft_on_the_same_set():
    runs = [
        scored("a", [0.4] * 3).run,
        scored("b", [0.3] * 3).run,
        scored("a", [0.8] * 3, reader="full-ft").run,
        scored("c", [0.1] * 3).run,
        scored("c", [0.0] * 3, reader="full-ft").run,
    ]
    kept = [r.retention for r in with_shares(runs)]
    assert kept[0] == pytest.approx(0.5) and kept[2] == 1.0 and [kept[1], *kept[3:]] == [None] * 3
    assert dataclasses.replace(with_shares(runs)[0], retention=None) == runs[0]


def test_the_share_of_the_text_is_that_of_the_same_set_and_prompt():
    prompted = [
        dataclasses.replace(scored("a", [f1] * 3, reader=reader).run, prompt=prompt)
        for f1, reader, prompt in ((0.2, "text", "qa"), (0.4, "text", "chat"), (0.1, "memory", "chat"))
    ]
    runs = [*prompted, scored("a", [0.1] * 3).run, scored("b", [0.1] * 3).run]
    shares = [r.of_text for r in with_shares(runs)]
    assert shares == [1.0, 1.0, pytest.approx(0.25), None, None]


def test_the_difference_is_paired_so_that_what_is_shared_cancels_out():
    base = np.random.default_rng(1).random(300) * 0.8
    gains = np.random.default_rng(2).normal(0.03, 0.02, 300)
    first, other = scored("a", list(base)), scored("a", list(base + gains))
    found = difference([other], [first])
    spread = 1.96 * gains.std() / math.sqrt(300)
    assert found["difference"] == pytest.approx(gains.mean())
    assert found["difference_low"] == pytest.approx(gains.mean() - spread, abs=3e-4)
    assert found["difference_high"] == pytest.approx(gains.mean() + spread, abs=3e-4)
    assert found["difference_low"] > 0 and other.run.f1_low < first.run.f1_high  # told apart only in pairs
    turned = difference([first], [other])
    assert turned["difference_low"] == pytest.approx(-found["difference_high"])
    assert set(difference([first], [first]).values()) == {0.0}


def test_differences_of_several_sets_count_each_set_alike():
    first = [scored("a", [0.0] * 10), scored("b", [0.5] * 200)]
    other = [scored("a", [1.0, 0.0] * 5), scored("b", [0.4] * 200)]
    a, b, both = with_macro(other, "macro in-domain", first)
    assert (a.set, b.set, both.set) == ("a", "b", "macro in-domain")
    assert [r.difference for r in (a, b, both)] == pytest.approx([0.5, -0.1, 0.2])
    assert b.difference_low == b.difference_high == pytest.approx(-0.1)
    assert both.difference_high - both.difference_low == pytest.approx((a.difference_high - a.difference_low) / 2)
    assert both.f1 == macro(other).f1
    assert [r.difference for r in with_macro(other)] == [None] * 3 and len(with_macro(other[:1], "x", first[:1])) == 1


def test_means_are_those_of_the_predictions():
    found = scored("a", [0.1, 0.7, 1.0])
    assert found.run.f1 == pytest.approx(fmean(p.f1 for p in found.predictions))
