"""Experiments whose runs answer questions: methods, components and selection of anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sac_rag.reproduce import paper
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.order import Sample, compared
from sac_rag.reproduce.page import Section, with_interval
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.specs import Spec
from sac_rag.reproduce.systems import system_of

METRIC, EXACT, SQUAD = "rouge1", "em_raw", "f1"
"""The paper's pair, and SQuAD's F1 beside it."""
METRICS = (
    "F1 and EM are the paper's: sets of words (`rouge` 1.0.1) and raw equality with the first answer, in percent, "
    "means over sets. SQuAD F1 is normalised, with the best of all accepted answers. Intervals are of 95 %, "
    "bootstrapped over questions within sets."
)
CEILING = "full-ft"


class Methods(Experiment):
    """Every system at every ratio on sets in and out of domain."""

    covers = ("table1", "table2", "table7", "table11", "table15")
    title = "Methods on questions (tables 1, 2, 7, 11, 15)"
    systems: ClassVar[tuple[str, ...]] = (
        *("full-ft", "sac", "epl", "500x", "icae", "beacon", "dast", "llmlingua2"),
        *("full-kv", "kvzip", "attention-matching"),
    )
    groups = (paper.ID, paper.OOD)

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [
            run
            for ratio in plan.scale.ratios
            for group in self.groups
            for name in plan.ready(self.systems)
            for run in plan.scores(name, group, ratio)
        ]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        head = Section(
            "What was run",
            "\n\n".join(
                part
                for part in (
                    "The paper spreads these figures over several tables; here is one a ratio and group of sets.",
                    METRICS,
                    plan.lacking(self.systems),
                    found.failures([s for run in self.runs(plan) for s in (*run.before(), run)]),
                )
                if part
            ),
        )
        grids = [self._grid(plan, found, ratio, group) for ratio in plan.scale.ratios for group in self.groups]
        return [head, *grids]

    def _grid(self, plan: Plan, found: Found, ratio: float, group: str) -> Section:
        rows: list[dict[str, Any]] = []
        samples: dict[str, Sample] = {}
        known: dict[str, float] = {}
        ceiling = found.sample(plan.scores(CEILING, group, ratio), METRIC)
        for name in self.systems:
            system = system_of(name)
            said = paper.METHODS.get((name, None if name == CEILING else ratio, group))
            row: dict[str, Any] = {
                "system": system.called,
                "paper F1": said and said[0],
                "paper EM": said and said[1],
            }
            if system.lacks() is None:
                runs = plan.scores(name, group, ratio)
                row |= scored(found, runs)
                if sample := found.sample(runs, METRIC):
                    samples[name] = sample
                    if ceiling and ceiling.value:
                        row["of Full-FT F1, percent"] = 100 * sample.value / ceiling.value
                row["bytes a source token"] = found.mean(runs, "bytes_per_source_token")
            row["note"] = system.note or None
            rows.append(row)
            if said:
                known[name] = said[0]
        files = ", ".join(plan.scale.sets[group])
        return Section(f"{ratio:g}x, {group}", f"Sets: {files}.", rows, compared(known, samples))


def scored(found: Found, runs: Sequence[Any]) -> dict[str, Any]:
    """The cells of a system's scores; empty ones where runs are missing."""
    f1, em, squad = (found.sample(runs, metric) for metric in (METRIC, EXACT, SQUAD))
    return {
        "F1": f1 and with_interval(f1.value, f1.interval),
        "EM": em and with_interval(em.value, em.interval),
        "SQuAD F1": squad and squad.value,
        "questions": sum(len(r["scores"][METRIC]) for run in runs if (r := found(run))) or None,
    }


class Ablation(Experiment):
    """Variants of SAC at the scale's ratios, in and out of domain. known: the paper's in-domain F1 at `known_ratio`."""

    systems: ClassVar[tuple[str, ...]]
    known: ClassVar[Mapping[str, float]]
    known_ratio: ClassVar[float] = 5.0
    about: ClassVar[str]

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [
            run
            for ratio in plan.scale.ratios
            for group in (paper.ID, paper.OOD)
            for name in plan.ready(self.systems)
            for run in plan.scores(name, group, ratio)
        ]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        failures = found.failures([s for run in self.runs(plan) for s in (*run.before(), run)])
        text = "\n\n".join(p for p in (self.about, METRICS, plan.lacking(self.systems), failures) if p)
        return [
            Section("What was run", text),
            *(self._grid(plan, found, r, group) for r in plan.scale.ratios for group in (paper.ID, paper.OOD)),
        ]

    def _grid(self, plan: Plan, found: Found, ratio: float, group: str) -> Section:
        told = self.known if (ratio, group) == (self.known_ratio, paper.ID) else {}
        rows, samples = [], {}
        for name in self.systems:
            system = system_of(name)
            row: dict[str, Any] = {"system": system.called, "paper F1": told.get(name)}
            if system.lacks() is None:
                runs = plan.scores(name, group, ratio)
                row |= scored(found, runs)
                if sample := found.sample(runs, METRIC):
                    samples[name] = sample
            rows.append(row)
        note = "" if told else "The paper's figures of this ratio and group are not known here."
        return Section(f"{ratio:g}x, {group}", note, rows, compared(told, samples))


class Components(Ablation):
    covers = ("table3", "table16", "table17")
    title = "Components (tables 3, 16, 17)"
    systems = ("sac", "sac-no-mask", "sac-no-anchor")
    known = paper.COMPONENTS
    about = "SAC without its bidirectional mask, and without the embedding that marks anchors, all else alike."


class Selection(Ablation):
    covers = ("table4",)
    title = "Selection of anchors (table 4)"
    systems = ("sac", "sac-random", "sac-llmlingua2", "sac-salient")
    known = paper.SELECTION
    about = (
        "SAC with anchors spread evenly, drawn at random, and chosen by scores. Salient anchors are ours: a small "
        "perceptron that learns which tokens questions ask for."
    )
