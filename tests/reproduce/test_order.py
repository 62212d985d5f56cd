"""Whether systems stand in the paper's order, as far as intervals tell; and what a page says of it."""

from __future__ import annotations

import numpy as np
import pytest

from sac_rag.reproduce.drawing import Picture
from sac_rag.reproduce.order import AGREES, DISAGREES, OPEN, Sample, compared
from sac_rag.reproduce.page import Section, cell, order, table


def sample(*scores: float) -> Sample:
    return Sample.of({"a": scores})


def test_a_sample_is_the_mean_of_sets_that_count_alike() -> None:
    both = Sample.of({"a": [0.0, 10.0], "b": [20.0] * 8})
    assert both.value == 12.5 and both.means.shape == (1000,)
    assert np.mean(both.means) == pytest.approx(12.5, abs=0.3) and both.interval == (10.0, 15.0)


def test_pairs_agree_disagree_or_are_open() -> None:
    better, worse = sample(*[5.0] * 20), sample(*[1.0] * 20)
    noisy = sample(*[0.0, 10.0] * 10)
    (pair,) = compared({"x": 60.0, "y": 50.0}, {"x": better, "y": worse})
    assert (pair.first, pair.second, pair.paper, pair.difference) == ("x", "y", 10.0, 4.0)
    assert pair.verdict == AGREES
    assert compared({"x": 60.0, "y": 50.0}, {"x": worse, "y": better})[0].verdict == DISAGREES
    assert compared({"x": 60.0, "y": 50.0}, {"x": noisy, "y": better})[0].verdict == OPEN


def test_where_less_is_better_the_order_turns() -> None:
    low, high = sample(*[1.0] * 20), sample(*[5.0] * 20)
    (pair,) = compared({"x": 10.0, "y": 12.0}, {"x": low, "y": high}, less_is_better=True)
    assert (pair.first, pair.verdict, pair.difference) == ("x", AGREES, 4.0)


def test_what_only_one_side_has_is_not_compared() -> None:
    assert compared({"x": 1.0, "z": 2.0}, {"x": sample(1.0), "y": sample(2.0)}) == []


def test_a_page_names_pairs_that_stand_otherwise() -> None:
    a, b = sample(*[5.0] * 20), sample(*[1.0] * 20)
    pairs = compared({"x": 60.0, "y": 50.0, "z": 40.0}, {"x": b, "y": a, "z": b})
    said = order(pairs)
    assert said.startswith("Order: of 3 pairs 1 as in the paper, 1 the other way round, 1 open")
    assert "* x before y: the other way round (paper +10.00, here -4.00, -4.00 to -4.00)" in said
    assert "* x before z: open" in said and "y before z" not in said


def test_unknown_cells_stay_empty() -> None:
    assert table([{"a": 1.0, "b": None}, {"a": "x|y", "c": 2}]) == (
        "| a | b | c |\n| --- | --- | --- |\n| 1.00 |  |  |\n| x\\|y |  | 2 |"
    )
    assert cell(12345.6) == "12,346"
    assert (
        Section("T", pictures=[Picture("f.svg", "Loss", str)]).markdown("figures") == "## T\n\n![Loss](figures/f.svg)\n"
    )
