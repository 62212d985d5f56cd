"""Larger models (tables 6, 18, 19): what stands in for them is labelled so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sac_rag.reproduce import paper
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.experiments.questions import GROUPS, METRIC, METRICS, scored
from sac_rag.reproduce.order import Sample, compared
from sac_rag.reproduce.page import Section, paragraphs
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.specs import Model, Score, Spec
from sac_rag.reproduce.systems import system_of

RATIO = 15.0


class Sizes(Experiment):
    """SAC and EPL on models of other sizes."""

    covers = ("table6", "table18", "table19")
    title = "Model sizes (tables 6, 18, 19)"
    systems = ("sac", "epl")

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [
            run
            for size in plan.scale.sizes
            for name in plan.ready(self.systems)
            for group in GROUPS
            for run in self._scores(plan, name, group, size)
        ]

    @staticmethod
    def _scores(plan: Plan, name: str, group: str, size: tuple[str, str, float]) -> list[Score]:
        _, of, share = size
        return plan.scores(name, group, RATIO, model=of if share == 1 else Model(of, share))

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        about = (
            f"At {RATIO:g}x. The paper's figures are those of its table 6, from a reader's notes on it, not checked; "
            "which sets they average is not said there, so only their order is compared."
        )
        text = paragraphs(about, METRICS, plan.lacking(self.systems), found.failures(self.runs(plan)))
        grids = [self._grid(plan, found, size, group) for size in plan.scale.sizes for group in GROUPS]
        return [Section("What was run", text), *grids]

    def _grid(self, plan: Plan, found: Found, size: tuple[str, str, float], group: str) -> Section:
        meant, of, share = size
        told: Mapping[str, tuple[float, float]] = {
            name: figures for (name, model), figures in paper.SIZES.items() if model == meant
        }
        rows: list[dict[str, Any]] = []
        samples: dict[str, Sample] = {}
        for name in self.systems:
            f1, em = told.get(name, (None, None))
            row: dict[str, Any] = {"system": system_of(name).called, "paper F1": f1, "paper EM": em}
            if plan.ready((name,)):
                runs = self._scores(plan, name, group, size)
                row |= scored(found, runs)
                if sample := found.sample(runs, METRIC):
                    samples[name] = sample
            rows.append(row)
        stands = stand_in(meant, of, share)
        return Section(f"{meant}, {group}", stands, rows, compared({n: v[0] for n, v in told.items()}, samples))


def stand_in(meant: str, of: str, share: float) -> str:
    """What was run in place of a model, in words."""
    if of.rpartition("/")[2] == meant and share == 1:
        return ""
    what = of or "a random model"
    what = what if share == 1 else f"the first {share:.0%} of the layers of {what}, not trained on"
    return f"A stand-in: {what}, in place of {meant}."
