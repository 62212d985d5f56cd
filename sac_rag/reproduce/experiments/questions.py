"""Experiments whose runs answer questions: methods, components and selection of anchors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sac_rag.reproduce import paper
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.order import Sample, compared
from sac_rag.reproduce.page import Section, paragraphs, with_interval
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.specs import Score, Spec
from sac_rag.reproduce.systems import system_of

METRIC, EXACT, SQUAD = "rouge1", "em_raw", "f1"
"""The paper's pair, and SQuAD's F1 beside it."""
METRICS = (
    "F1 and EM are the paper's: sets of words (`rouge` 1.0.1) and raw equality with the first answer, in percent, "
    "means over sets. SQuAD F1 is normalised, with the best of all accepted answers. Intervals are of 95 %, "
    "bootstrapped over questions within sets."
)
SHARES = {"full-ft": "of Full-FT F1, percent", "text": "of frozen text F1, percent"}
"""System that others are shares of -> column."""
GROUPS = (paper.ID, paper.OOD)


class Answers(Experiment):
    """Systems on sets of questions: a table for each ratio and group, in the order of `systems`."""

    systems: ClassVar[tuple[str, ...]]
    about: ClassVar[str]
    groups: ClassVar[tuple[str, ...]] = GROUPS
    shares: ClassVar[Mapping[str, str]] = {}
    settings: ClassVar[Mapping[str, Any]] = {}
    """More of `Plan.score`."""

    def ratios(self, plan: Plan) -> Sequence[float]:
        return plan.scale.ratios

    @abstractmethod
    def known(self, ratio: float, group: str) -> Mapping[str, tuple[float, float | None]]:
        """F1 and EM of the paper by system, as far as they are known."""

    def scores(self, plan: Plan, name: str, group: str, ratio: float) -> list[Score]:
        return plan.scores(name, group, ratio, **self.settings)

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [
            run
            for name in plan.ready(self.systems)  # one model after the other
            for ratio in self.ratios(plan)
            for group in self.groups
            for run in self.scores(plan, name, group, ratio)
        ]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = paragraphs(self.about, METRICS, plan.lacking(self.systems), found.failures(self.runs(plan)))
        grids = [self._grid(plan, found, ratio, group) for ratio in self.ratios(plan) for group in self.groups]
        return [Section("What was run", text), *grids]

    def _grid(self, plan: Plan, found: Found, ratio: float, group: str) -> Section:
        said = self.known(ratio, group)
        rows: list[dict[str, Any]] = []
        samples: dict[str, Sample] = {}
        wholes = {n: found.sample(self.scores(plan, n, group, ratio), METRIC) for n in plan.ready(self.shares)}
        for name in self.systems:
            system, (f1, em) = system_of(name), said.get(name, (None, None))
            row: dict[str, Any] = {"system": system.called, "paper F1": f1, "paper EM": em}
            if plan.ready((name,)):
                runs = self.scores(plan, name, group, ratio)
                row |= scored(found, runs)
                if sample := found.sample(runs, METRIC):
                    samples[name] = sample
                    for whole, column in self.shares.items():
                        if (of := wholes.get(whole)) and of.value:
                            row[column] = 100 * sample.value / of.value
                row["bytes a source token"] = found.mean(runs, "bytes_per_source_token")
            rows.append({**row, "note": system.note or None})
        text = f"Sets: {', '.join(plan.scale.sets[group])}."
        if not said:
            text += " The paper's figures are not known here."
        return Section(f"{ratio:g}x, {group}", text, rows, compared({n: v[0] for n, v in said.items()}, samples))


def scored(found: Found, runs: Sequence[Any]) -> dict[str, Any]:
    """The cells of a system's scores; empty ones where runs are missing."""
    f1, em, squad = (found.sample(runs, metric) for metric in (METRIC, EXACT, SQUAD))
    return {
        "F1": f1 and with_interval(f1.value, f1.interval),
        "EM": em and with_interval(em.value, em.interval),
        "SQuAD F1": squad and squad.value,
        "questions": sum(len(r["scores"][METRIC]) for run in runs if (r := found(run))) or None,
    }


class Methods(Answers):
    """Every system at every ratio on sets in and out of domain."""

    covers = ("table1", "table2", "table7", "table11", "table15")
    title = "Methods on questions (tables 1, 2, 7, 11, 15)"
    about = (
        "The paper spreads these figures over several tables; here is one for each ratio and group of sets. Methods "
        "without training are none of the paper's: the frozen model on the text is their ceiling."
    )
    systems = (
        *("full-ft", "sac", "epl", "500x", "icae", "beacon", "dast", "llmlingua2"),
        *("text", "closed", "full-kv", "kvzip", "attention-matching", "kept-words"),
    )
    shares = SHARES

    def known(self, ratio: float, group: str) -> Mapping[str, tuple[float, float | None]]:
        return {
            name: figures
            for (name, at, where), figures in paper.METHODS.items()
            if where == group and at in (ratio, None)
        }


class Ablation(Answers):
    """Variants of SAC. figures: in-domain F1 of the paper by ratio."""

    figures: ClassVar[Mapping[float, Mapping[str, float]]]

    def known(self, ratio: float, group: str) -> Mapping[str, tuple[float, float | None]]:
        told = self.figures.get(ratio, {}) if group == paper.ID else {}
        return {name: (f1, None) for name, f1 in told.items()}


class Components(Ablation):
    covers = ("table3", "table16", "table17")
    title = "Components (tables 3, 16, 17)"
    systems = ("sac", "sac-no-mask", "sac-no-anchor")
    figures = paper.COMPONENTS
    about = "SAC without its bidirectional mask, and without the embedding that marks anchors, all else alike."


class Selection(Ablation):
    covers = ("table4",)
    title = "Selection of anchors (table 4)"
    systems = ("sac", "sac-random", "sac-llmlingua2", "sac-salient")
    figures = paper.SELECTION
    about = (
        "SAC with anchors spread evenly, drawn at random, and chosen by scores. Salient anchors are ours: a small "
        "perceptron that learns which tokens questions ask for."
    )
