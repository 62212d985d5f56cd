"""What is measured beside answers, each against an oracle of its own: BLEU, perplexity, vectors, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.reproduce import drawing
from sac_rag.reproduce.bleu import bleu4, words
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.plan import Plan
from sac_rag.reproduce.runner import reproduce
from sac_rag.reproduce.scales import PAPER, SMALL, TINY
from sac_rag.reproduce.specs import Model
from sac_rag.reproduce.work.attention import Seen, entropy, own, rows_of
from sac_rag.reproduce.work.scoring import cut
from sac_rag.reproduce.work.training import curve
from sac_rag.reproduce.work.vectors import distance, projected, run_of

SAID = ["the cat sat on the mat, and it rained for 3.5 hours.", "a b c d e"]
MEANT = ["the cat sat on a mat, and it rained for 3.5 hours today.", "a b c d f g"]


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    assert bleu4(SAID, MEANT) == pytest.approx(
        sacrebleu.corpus_bleu(SAID, [MEANT], smooth_method="none").score, abs=1e-9
    )
    longer = [f"{text} and then some more words" for text in MEANT]
    wanted = sacrebleu.corpus_bleu(longer, [MEANT], smooth_method="none").score
    assert bleu4(longer, MEANT) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("text", [*SAID, 'He said "no", twice-over; 1,000.5 km/h?', "x\ny -\n z", "R&amp;D (2-3)"])
def test_words_are_those_of_mteval(text: str) -> None:
    tokenizer = pytest.importorskip("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    assert words(text) == tokenizer(text).split()


def test_bleu_by_hand() -> None:
    assert bleu4(["a b c d"], ["a b c d"]) == pytest.approx(100)
    assert bleu4(["a b c d e"], ["a b c d f"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert bleu4(["x y z w"], ["a b c d"]) == 0.0
    assert bleu4(["a b c d"], ["a b c d e f g h"]) == pytest.approx(100 * math.exp(-1))


def test_distance_is_in_units_of_the_texts_own() -> None:
    text = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    assert distance(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), text) == 1.0  # mean of 1 and 3, over 2


def test_the_run_of_a_layer_is_its_first_head_that_keeps_something() -> None:
    counts = torch.tensor([[2, 1], [0, 3]])
    keys = torch.arange(6.0)[:, None]
    kv = AnchorKV(keys, -keys, torch.tensor([0, 1, 0, 0, 1, 2]), counts, 3)
    found, values = run_of(kv, 1)
    assert found.flatten().tolist() == [3, 4, 5] and values.flatten().tolist() == [-3, -4, -5]
    assert run_of(kv, 0)[0].flatten().tolist() == [0, 1]


def test_projections_keep_what_lies_apart_apart() -> None:
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(12, 8, generator=generator).double()
    made = projected(near[:5] + 40, near[5:])
    for way in ("pca", "tsne"):
        memory, text = (torch.tensor(made[way][kind]) for kind in ("memory", "text"))
        assert memory.shape == (5, 2) and text.shape == (7, 2)
    memory, text = (torch.tensor(made["pca"][kind])[:, 0] for kind in ("memory", "text"))
    assert memory.max() < text.min() or text.max() < memory.min()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_seen_as_transformers_computes_it(make_backbone: Callable[..., Any], causal: bool) -> None:
    backbone = make_backbone(lora=False)
    ids = torch.arange(20) + 5
    every = backbone.even(torch.arange(20))
    with torch.inference_mode(), Seen() as seen:
        backbone.encode([ids], [every], causal=causal)
    model = backbone.decoder
    assert len(seen.weights) == model.config.num_hidden_layers - 1  # the last one only keeps keys and values
    if causal:
        model.set_attn_implementation("eager")
        with torch.no_grad():
            wanted = model(input_ids=ids[None], output_attentions=True).attentions
        for mine, theirs in zip(seen.weights, wanted, strict=False):
            torch.testing.assert_close(mine, theirs[0].mean(0), atol=1e-5, rtol=1e-4)
    for weights in seen.weights:
        assert weights.shape == (20, 20)
        torch.testing.assert_close(weights.sum(1), torch.ones(20))
        assert bool(weights.triu(1).any()) is not causal


def test_rows_are_anchors_or_what_was_appended() -> None:
    anchors = torch.tensor([2, 7])
    assert rows_of(anchors, 10, 10) is anchors and rows_of(anchors, 10, 12).tolist() == [10, 11]


def test_spread_and_own_share_of_maps() -> None:
    flat, sharp = torch.full((2, 8), 1 / 8), torch.eye(8)[[1, 6]]
    assert entropy(flat) == pytest.approx(1) and entropy(sharp) == 0
    assert own(flat) == pytest.approx(0.5) and own(sharp) == 1 and own(sharp.flip(0)) == 0


def test_a_long_context_is_cut_by_tokens(make_backbone: Callable[..., Any]) -> None:
    from sac_rag.evaluate.tasks import Task
    from sac_rag.train.data import Question

    question = (Question("1", "Who?", ("x",)),)
    task = Task("t", (("abcdefgh" * 4, question), ("short", question)))
    made = cut(task, make_backbone(lora=False), 10)
    assert [text for text, _ in made.contexts] == ["abcdefghab", "short"] and made.questions == 2


def test_a_curve_counts_a_repeated_step_once(tmp_path: Path) -> None:
    lines = [
        '{"step": 1, "loss": 3.0, "extra": {"norm": 1.0, "cosine": 0.5}}',
        '{"step": 2, "loss": 9.0, "extra": {}}',
        '{"step": 2, "loss": 2.0, "recall": 4.0, "extra": {"norm": 1.0}}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    first = {"step": 1, "loss": 3.0, "cosine": 0.5}
    assert curve(tmp_path) == [first, {"step": 2, "loss": 2.0, "recall": 4.0}]


def test_pictures_have_the_same_bytes_each_time() -> None:
    pytest.importorskip("matplotlib")
    for draw in (
        lambda: drawing.lines("T", "x", "y", {"a": [(0, 1.0), (1, 2.0)]}, level=0.0),
        lambda: drawing.clouds({"t": {"memory": [(0.0, 1.0)], "text": [(1.0, 0.0)]}}),
        lambda: drawing.maps({"t": [[0.1, 0.9], [0.5, 0.5]]}, "x", "y"),
        lambda: drawing.trade_off("T", [("s", {"a": [(1.0, 2.0, "5x")]})]),
    ):
        first = draw()
        assert first == draw() and first.startswith("<?xml") and "</svg>" in first


def test_scales_name_larger_steps_and_the_papers_settings() -> None:
    assert SMALL.with_steps(30).settings["pretrain"]["steps"] == 10
    paper = PAPER.settings["finetune"]
    assert (paper["steps"], paper["learning_rate"], paper["clip"]) == (20_000, 5e-5, 2.0)
    assert dict(PAPER.lora) == {"rank": 128, "alpha": 256.0, "targets": ("q_proj", "v_proj")}


def test_measures_of_texts_and_pictures_at_tiny_scale(tmp_path: Path) -> None:
    """Perplexity, vectors, attention and gradients of SAC alone, by the runs that the experiments name."""
    pytest.importorskip("sklearn")
    place = Place.make(TINY, None, tmp_path, device="cpu", dtype="float32")
    plan = Plan(place)
    made = reproduce(
        "tiny", tmp_path, only=["table10", "figure4", "figure6", "figure9"], systems=["sac", "sac-ae+lm"], device="cpu",
        dtype="float32",
    )  # fmt: skip
    assert made.whole and not made.failed and not made.notices
    (row,) = (r for r in made.tables["pretraining"][0]["rows"] if r["system"] == "SAC")
    assert row["steps"] == 2 and float(row["PPL"].split()[0]) > 1
    (row,) = made.tables["space"][0]["rows"]
    assert row["system"] == "SAC" and row["distance of keys"] > 0
    seen = made.tables["attention"][1]["rows"]
    assert {r["system"] for r in seen} == {"SAC"} and all(0 < r["spread"] <= 1 and 0 < r["own"] < 1 for r in seen)
    (row,) = made.tables["gradients"][0]["rows"]
    assert -1 <= row["first"] <= 1
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        *("vectors-sac-tsne.svg", "vectors-sac-pca.svg", "attention-sac-5x.svg", "attention-sac-15x.svg"),
        "gradient-cosine.svg",
    }
    assert "](figures/gradient-cosine.svg)" in (tmp_path / "gradients.md").read_text()
    assert plan.adapter("sac", for_="lm") != plan.adapter("sac")


def test_a_stand_in_has_the_first_layers_of_another(tmp_path: Path) -> None:
    from sac_rag.reproduce.work import models

    place = Place.make(TINY, None, tmp_path, device="cpu", dtype="float32")
    spec = Model("", 0.67)
    said = models.compute(spec, place, lambda *_: None, lambda: False)
    assert (said["layers"], said["of_layers"]) == (2, 3)
    whole, _ = place.base("")
    part, _ = place.base(spec)
    a, b = whole.state_dict(), part.state_dict()
    assert set(b) < set(a) and all(torch.equal(a[name], b[name]) for name in b)
