"""The paper's figures: losses, gradients, vectors, attention, and F1 against cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from sac_rag.reproduce import drawing, paper
from sac_rag.reproduce.drawing import Picture
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.experiments.questions import METRIC
from sac_rag.reproduce.page import Section, paragraphs
from sac_rag.reproduce.plan import TEXTS, Found, Plan
from sac_rag.reproduce.specs import Attention, Spec, Train, Vectors
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.vectors import KEYS, VALUES


class Losses(Experiment):
    """Losses while systems are pretrained and finetuned."""

    covers = ("figure5",)
    title = "Losses in training (figure 5)"
    systems: ClassVar[tuple[str, ...]] = ("sac", "epl", "500x", "icae", "full-ft")

    def _stages(self, plan: Plan) -> dict[str, dict[str, Train]]:
        """Kind of stage -> system -> its run."""
        found: dict[str, dict[str, Train]] = {"pretraining": {}, "finetuning": {}}
        for name in plan.ready(self.systems):
            last = plan.adapter(name)
            if last:
                found["finetuning"][name] = last
                if last.start:
                    found["pretraining"][name] = last.start
        return found

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [run for stages in self._stages(plan).values() for run in stages.values()]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = (
            "Nats a token, smoothed over the steps: of a text's second half in pretraining, of answers in finetuning. "
            "The paper's curves are not known here as figures."
        )
        sections = []
        for kind, stages in self._stages(plan).items():
            curves = {n: points(run, "loss") for n, spec in stages.items() if (run := found(spec))}
            draw = partial(drawing.lines, f"Loss in {kind}", "updates", "loss, nats a token", called(curves))
            rows = [
                {"system": system_of(n).called, "first loss": c[0][1], "last loss": c[-1][1], "updates": int(c[-1][0])}
                for n, c in curves.items()
            ]
            pictures = [Picture(f"loss-{kind}.svg", f"Loss in {kind}", draw)] if curves else []
            note = paragraphs(text, plan.lacking(self.systems), found.failures(stages.values()))
            sections.append(Section(kind.capitalize(), note, rows, pictures=pictures))
        return sections


class Angles(Experiment):
    """The cosine of the gradients of AE and LM in pretraining by both."""

    covers = ("figure9",)
    title = "Gradients of AE and LM (figure 9)"
    systems: ClassVar[tuple[str, ...]] = ("sac-ae+lm", "500x", "epl")

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [run for name in plan.ready(self.systems) if (run := plan.adapter(name, for_=TEXTS))]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = paragraphs(
            "The cosine of the angle between both gradients, over all that is trained, smoothed over the measurements. "
            "The paper finds it near 0 soon after the start: the losses teach different things.",
            plan.lacking(self.systems),
            found.failures(self.runs(plan)),
        )
        runs = {n: found(spec) for n in plan.ready(self.systems) if (spec := plan.adapter(n, for_=TEXTS))}
        curves = {n: c for n, run in runs.items() if run and (c := points(run, "cosine"))}
        rows = [{"system": system_of(n).called, "first": c[0][1], "last": c[-1][1]} for n, c in curves.items()]
        draw = partial(drawing.lines, "Cosine of the gradients", "updates", "cosine", called(curves), level=0.0)
        pictures = [Picture("gradient-cosine.svg", "Cosine of the gradients of AE and LM", draw)] if curves else []
        return [Section("While both are trained", text, rows, pictures=pictures)]


class Space(Experiment):
    """Keys and values of memories among those of the text."""

    covers = ("figure4",)
    title = "Keys and values in two dimensions (figure 4)"
    systems: ClassVar[tuple[str, ...]] = ("sac", "500x", "epl")
    ratio = 5.0

    def _run(self, plan: Plan, name: str) -> Vectors:
        return Vectors(plan.trained(name), plan.scale.held_out, self.ratio, plan.scale.points)

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [self._run(plan, name) for name in plan.ready(self.systems)]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = paragraphs(
            f"Of one head in the middle layer, keys before RoPE, at {self.ratio:g}x. Distance: of a slot to the "
            "nearest token of the text as the frozen model reads it, in units of how far tokens are from their "
            "nearest. The paper sees SAC's slots among the text's and those of 500xCompressor apart.",
            plan.lacking(self.systems),
            found.failures(self.runs(plan)),
        )
        rows, pictures = [], []
        for name in plan.ready(self.systems):
            run = found(self._run(plan, name))
            if run is None:
                continue
            system = system_of(name).called
            rows.append({"system": system, **{f"distance of {k}": run[k]["distance"] for k in (KEYS, VALUES)}})
            for way, method in (("tsne", "t-SNE"), ("pca", "PCA")):
                panels = {f"{system}, {k}, {method}": kinds(run[k][way]) for k in (KEYS, VALUES)}
                draw = partial(drawing.clouds, panels)
                pictures.append(Picture(f"vectors-{name}-{way}.svg", f"Keys and values of {system} by {method}", draw))
        return [Section("Among the text", text, rows, pictures=pictures)]


def kinds(projected: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Points by what they are; the text's first, so that slots lie above."""
    return {name: [(x, y) for x, y in projected[name]] for name in ("text", "memory")}


class Maps(Experiment):
    """Where slots look while they are written, at three ratios."""

    covers = ("figure6", "figure7", "figure8")
    title = "Attention of slots (figures 6, 7, 8)"
    systems: ClassVar[tuple[str, ...]] = ("sac", "500x", "epl")

    def _run(self, plan: Plan, name: str, ratio: float) -> Attention:
        return Attention(plan.trained(name), plan.scale.held_out, ratio, plan.scale.map_tokens)

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [self._run(plan, name, r) for name in plan.ready(self.systems) for r in plan.scale.ratios]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = paragraphs(
            "Shares of the attention of each slot on the tokens of the text while it is written, the mean over heads. "
            "Spread: their entropy, as a share of the most there can be. Own: how much falls on the equal part of the "
            "text that the slot stands for. The paper sees SAC's slots look at few tokens near them, and others ever "
            "more everywhere as ratios rise.",
            plan.lacking(self.systems),
            found.failures(self.runs(plan)),
        )
        return [Section("What was seen", text), *(self._at(plan, found, ratio) for ratio in plan.scale.ratios)]

    def _at(self, plan: Plan, found: Found, ratio: float) -> Section:
        rows, pictures = [], []
        for name in plan.ready(self.systems):
            run = found(self._run(plan, name, ratio))
            if run is None:
                continue
            system = system_of(name).called
            for layer, seen in run["layers"].items():
                share = {"spread": seen["entropy"], "own": seen["own"]}
                rows.append({"system": system, "layer": int(layer) + 1, **share, "slots": run["slots"]})
            panels = {f"{system} {ratio:g}x, layer {int(n) + 1}": s["map"] for n, s in run["layers"].items()}
            draw = partial(drawing.maps, panels, "token", "slot")
            pictures.append(Picture(f"attention-{name}-{ratio:g}x.svg", f"Attention of {system} at {ratio:g}x", draw))
        return Section(f"{ratio:g}x", "", rows, pictures=pictures)


class TradeOff(Experiment):
    """In-domain F1 against seconds a question and stored bytes."""

    covers = ("figure10",)
    title = "F1 against latency and memory (figure 10)"
    systems: ClassVar[tuple[str, ...]] = (
        "sac",
        "epl",
        "500x",
        "icae",
        "full-ft",
        "text",
        "kvzip",
        "attention-matching",
    )

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [
            run
            for name in plan.ready(self.systems)
            for ratio in plan.scale.ratios
            for run in plan.scores(name, paper.ID, ratio)
        ]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        text = paragraphs(
            "In-domain, the runs of the methods' tables. Seconds a question: compressing and answering together, of "
            "runs one after the other on this machine, whatever else it did meanwhile. Bytes: stored memory of a "
            "source token; readers of text store none.",
            plan.lacking(self.systems),
            found.failures(self.runs(plan)),
        )
        rows: list[dict[str, Any]] = []
        for name in plan.ready(self.systems):
            each = {tuple(plan.scores(name, paper.ID, ratio)): ratio for ratio in plan.scale.ratios}
            for runs, ratio in each.items():  # those without a ratio are the same runs at all of them
                sample, speed = found.sample(runs, METRIC), found.mean(runs, "examples_per_s")
                if sample is None or not speed:
                    continue
                rows.append(
                    {
                        "system": system_of(name).called,
                        "ratio": f"{ratio:g}x" if runs[0].ratio else None,
                        "F1": sample.value,
                        "seconds a question": 1 / speed,
                        "bytes a source token": found.mean(runs, "bytes_per_source_token"),
                        "peak MiB": found.mean(runs, "peak_mib"),
                    }
                )
        panels = [(column, series(rows, column)) for column in ("seconds a question", "bytes a source token")]
        draw = partial(drawing.trade_off, "In-domain F1", [p for p in panels if p[1]])
        pictures = [Picture("trade-off.svg", "F1 against seconds a question and stored bytes", draw)] if rows else []
        return [Section("What it costs", text, rows, pictures=pictures)]


def series(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, list[tuple[float, float, str]]]:
    """Points (cost, F1, ratio) by system, where the cost is known."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        if row[column] is not None:
            found.setdefault(row["system"], []).append((row[column], row["F1"], row["ratio"] or ""))
    return found


def points(run: Mapping[str, Any], column: str) -> list[tuple[float, float]]:
    """(step, value) where it was recorded."""
    return [(row["step"], row[column]) for row in run["curve"] if column in row]


def called(curves: Mapping[str, Any]) -> dict[str, Any]:
    """Systems by what tables call them."""
    return {system_of(name).called: curve for name, curve in curves.items()}
