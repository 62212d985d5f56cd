"""What compressing costs: floating-point operations and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.evaluate.runs import RESAMPLES, interval
from sac_rag.reproduce import paper
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.page import Section, paragraphs, with_interval
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.scales import PAPER_SHAPE
from sac_rag.reproduce.specs import Flops, Latency, Pairs, Spec, pairs
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.flops import ANCHORS, APPENDED, PLAIN, WAYS

RATIOS = (5.0, 10.0, 15.0, 51.0)
RANKS = (128, 0)
"""The paper's rank, on all linear layers, and a model without LoRA."""


class Operations(Experiment):
    """FLOPs of one sub-context of 510 tokens, by formula for the paper's model and counted beside it."""

    covers = ("table12",)
    title = "FLOPs of compression (table 12)"

    def runs(self, plan: Plan) -> Sequence[Spec]:
        shape = plan.scale.counted_shape
        exact = [self._run(PAPER_SHAPE, way, r, rank, False) for rank in RANKS for r in RATIOS for way in WAYS]
        return [*exact, *(self._run(shape, way, r, RANKS[0], True) for r in RATIOS[:2] for way in WAYS)]

    @staticmethod
    def _run(shape: Pairs, way: str, ratio: float, rank: int, count: bool) -> Flops:
        return Flops(shape, way, MAX_PASSAGE_TOKENS, ratio, rank, count)

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        about = (
            "A system that appends its memory tokens reads one token more for each slot; SAC reads none more, but lets "
            "every token see all others. Operations of a sub-context of 510 tokens on Llama-3.2-1B, attention by the "
            "pairs that see each other, two operations a multiplication. How the paper counts is not known here: with "
            "LoRA on all linear layers the ratios are its own to two decimals; without LoRA attention weighs more, and "
            "5x is 1.18."
        )
        return [
            Section("By formula", about, [self._ratios(found, r, rank) for rank in RANKS for r in RATIOS]),
            self._counted(plan, found),
        ]

    def _ratios(self, found: Found, ratio: float, rank: int) -> dict[str, Any]:
        by_way = {way: found(self._run(PAPER_SHAPE, way, ratio, rank, False)) for way in WAYS}
        flops = {way: run["analytic"]["whole"] for way, run in by_way.items() if run}
        row: dict[str, Any] = {
            "ratio": f"{ratio:g}x",
            "LoRA": f"rank {rank} on all linear layers" if rank else "none",
            "paper": paper.FLOPS.get(ratio) if rank else None,
        }
        if len(flops) < len(by_way):
            return row
        return {
            **row,
            "here": flops[APPENDED] / flops[ANCHORS],
            "SAC over the plain text": flops[ANCHORS] / flops[PLAIN],
            **{f"{way}, TFLOP": flops[way] / 1e12 for way in (PLAIN, ANCHORS, APPENDED)},
        }

    def _counted(self, plan: Plan, found: Found) -> Section:
        shape = plan.scale.counted_shape
        d = dict(shape)
        about = (
            f"Counted by torch's FlopCounterMode while our encoder writes a sub-context with random weights of "
            f"{d['num_hidden_layers']} layers of width {d['hidden_size']} (MLP {d['intermediate_size']}), LoRA of rank "
            f"{RANKS[0]}. Our encoder ends with the last layer's keys and values of what is kept, as does the formula "
            "here. Fused attention counts pairs that a mask hides, which the formula leaves out."
        )
        rows: list[dict[str, Any]] = []
        for ratio in RATIOS[:2]:
            for way, (_, told) in WAYS.items():
                run = found(self._run(shape, way, ratio, RANKS[0], True))
                row: dict[str, Any] = {"ratio": f"{ratio:g}x", "pass": told}
                if run:
                    formula, counted = run["analytic"]["as_run"], run["counted"]
                    row |= {"formula, GFLOP": formula / 1e9, "counted, GFLOP": counted / 1e9}
                    row["counted over formula"] = counted / formula
                rows.append(row)
        return Section("Counted", about, rows)


class Compression(Experiment):
    """Seconds to compress a batch, SAC and 500xCompressor in turn in one run."""

    covers = ("table13",)
    title = "Latency of compression (table 13)"
    systems = ("sac", "500x")
    batch = 10
    ratio = 15.0

    def _run(self, plan: Plan) -> Latency:
        s = plan.scale
        return Latency(self.systems, s.model, self.ratio, s.latency_tokens, self.batch, s.rounds, pairs(s.lora))

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [self._run(plan)] if plan.ready(self.systems) == list(self.systems) else []

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        spec = self._run(plan)
        about = (
            f"Milliseconds to compress {spec.batch} sub-contexts of {spec.tokens} tokens at {spec.ratio:g}x, "
            f"{spec.rounds} rounds in which both take turns. Another machine and model than the paper's: what can be "
            "compared is the ratio."
        )
        run = found(spec)
        rows: list[dict[str, Any]] = []
        for name in self.systems:
            row: dict[str, Any] = {"system": system_of(name).called, "paper, ms": paper.LATENCY_MS[name]}
            if run:
                row["here, ms (median)"] = 1000 * run["medians"][name]
            rows.append(row)
        said = paper.LATENCY_MS["500x"] / paper.LATENCY_MS["sac"]
        row = {"system": "500xCompressor over SAC", "paper, ms": round(said, 2)}
        if run:
            value, interval = ratio_of(run["seconds"]["500x"], run["seconds"]["sac"])
            row["here, ms (median)"] = with_interval(value, interval)
        return [Section("Seconds in turn", paragraphs(about, found.failures([spec])), [*rows, row])]


def ratio_of(above: Sequence[float], below: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median of ratios taken round by round, and its 95 % bootstrap interval."""
    ratios = np.asarray(above) / np.asarray(below)
    draws = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    return float(np.median(ratios)), interval(np.median(ratios[draws], axis=1))
