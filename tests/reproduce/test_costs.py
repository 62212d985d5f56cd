"""Table 12 and 13: formula against the paper, counted against the formula, and a ratio within one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sac_rag.reproduce.experiments.costs import ratio_of
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.runner import reproduce
from sac_rag.reproduce.scales import PAPER_SHAPE, TINY
from sac_rag.reproduce.specs import Latency
from sac_rag.reproduce.work import latency
from sac_rag.reproduce.work.flops import ANCHORS, APPENDED, FUSED, PLAIN, _fused, analytic, counted

SHAPE = dict(TINY.counted_shape)


@pytest.mark.parametrize(("ratio", "said"), [(5.0, "1.19"), (10.0, "1.08")])
def test_formula_gives_the_papers_ratios(ratio: float, said: str) -> None:
    appended, anchors = (analytic(dict(PAPER_SHAPE), way, 510, ratio, 128)["whole"] for way in (APPENDED, ANCHORS))
    assert f"{appended / anchors:.2f}" == said


def test_formula_by_hand() -> None:
    """One layer of width 4, MLP 6, one head of 4, two tokens at 2x: every product counted one by one."""
    shape = {
        **{"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1, "head_dim": 4},
        **{"num_attention_heads": 1, "num_key_value_heads": 1},
    }
    linear = 2 * (4 * 4 * 4 + 3 * 4 * 6)  # q, k, v, o and three of the MLP, a token
    assert analytic(shape, PLAIN, 2, 2, 0) == {"whole": 2 * linear + 4 * 3 * 4, "as_run": 2 * 2 * 2 * 16}
    assert analytic(shape, ANCHORS, 2, 2, 0) == {"whole": 2 * linear + 4 * 4 * 4, "as_run": 2 * 1 * 2 * 16}
    assert analytic(shape, APPENDED, 2, 2, 0)["whole"] == 3 * linear + 4 * 6 * 4
    lora = 2 * 3 * (4 * (4 + 4) + 3 * (4 + 6))  # rank 3 on the seven
    assert analytic(shape, PLAIN, 2, 2, 3)["whole"] == 2 * (linear + lora) + 4 * 3 * 4


@pytest.mark.parametrize("way", [PLAIN, ANCHORS, APPENDED])
@pytest.mark.parametrize("ratio", [5.0, 10.0])
def test_counted_operations_are_within_a_twentieth_of_the_formula(way: str, ratio: float) -> None:
    formula = analytic(SHAPE, way, 510, ratio, 128)["as_run"]
    assert counted(SHAPE, way, 510, ratio, 128) == pytest.approx(formula, rel=0.05)


def test_sac_sees_all_pairs_so_that_its_count_is_the_formula() -> None:
    assert counted(SHAPE, ANCHORS, 510, 5, 128) == analytic(SHAPE, ANCHORS, 510, 5, 128)["as_run"]


def test_layers_are_counted_by_difference() -> None:
    deep = {**SHAPE, "num_hidden_layers": 5}
    by_layer = (counted({**SHAPE, "num_hidden_layers": n}, ANCHORS, 60, 5, 0) for n in (2, 3))
    two, three = by_layer
    assert counted(deep, ANCHORS, 60, 5, 0) == two + 3 * (three - two)


def test_fused_attention_is_counted_on_a_cpu() -> None:
    q = torch.ones(1, 2, 64, 16)
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping={FUSED: _fused}) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 4 * 64 * 64 * 16


def test_latency_is_a_ratio_within_one_run(tmp_path: Path) -> None:
    place = Place.make(TINY, None, tmp_path, device="cpu", dtype="float32")
    heard: list[tuple[int, int]] = []
    spec = Latency(("sac", "500x"), "", 15.0, 40, 3, 4, (("alpha", 8.0), ("rank", 4)))
    run = latency.compute(spec, place, lambda *at: heard.append(at), lambda: False)
    assert heard == [(n, 5) for n in range(1, 6)]
    assert {name: len(found) for name, found in run["seconds"].items()} == {"sac": 4, "500x": 4}
    assert all(s > 0 for found in run["seconds"].values() for s in found)


def test_ratio_of_rounds_is_their_median_with_an_interval() -> None:
    value, (low, high) = ratio_of([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    assert value == 2.0 and low == 2.0 and high == 3.0


def test_the_page_of_table_12_holds_the_papers_and_our_ratio(tmp_path: Path) -> None:
    made = reproduce("tiny", tmp_path, only=["table12"], device="cpu", dtype="float32")
    page = (tmp_path / "flops.md").read_text()
    assert "| 5x | rank 128 on all linear layers | 1.19 | 1.19 |" in page
    assert "| 10x | rank 128 on all linear layers | 1.08 | 1.08 |" in page
    rows = made.tables["flops"][1]["rows"]
    assert len(rows) == 6 and all(abs(row["counted over formula"] - 1) < 0.05 for row in rows)
