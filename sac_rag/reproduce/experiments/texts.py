"""Experiments on texts: autoencoding, perplexity after pretraining, long contexts and summaries."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sac_rag.reproduce import paper
from sac_rag.reproduce.experiment import Experiment
from sac_rag.reproduce.experiments.questions import Ablation, Answers
from sac_rag.reproduce.order import Sample, compared
from sac_rag.reproduce.page import Section, paragraphs, with_interval
from sac_rag.reproduce.plan import SUMMARIES, TEXTS, Found, Plan
from sac_rag.reproduce.specs import Perplexity, Score, Spec, Train
from sac_rag.reproduce.systems import system_of

RATIO = 15.0
"""At which texts are measured: long ones in the paper, and all of a scale that has it."""
LM, AE = "lm", "ae"


def perplexity(plan: Plan, name: str, objective: str) -> Perplexity:
    """Of a system after pretraining, on texts that nothing was trained on."""
    s, adapter = plan.scale, plan.trained(name, for_=TEXTS)
    return Perplexity(adapter, objective, s.held_out, RATIO, s.held_out_texts, s.text_tokens, objective == AE)


class Autoencoding(Ablation):
    """SAC pretrained by LM, by AE, and by both: on questions, and by what it says again and goes on with."""

    covers = ("table5", "table14")
    title = "Autoencoding (tables 5, 14)"
    systems = ("sac", "sac-ae", "sac-ae+lm")
    figures = paper.AUTOENCODING
    about = (
        "SAC pretrained by going on with a text (LM), by saying it again (AE), and by both, then finetuned alike on "
        "questions. The paper's figures at 15x are from a reader's notes on it, not checked."
    )

    def runs(self, plan: Plan) -> Sequence[Spec]:
        texts = [perplexity(plan, name, kind) for name in plan.ready(self.systems) for kind in (LM, AE)]
        return [*super().runs(plan), *texts]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        rows = []
        for name in self.systems:
            row: dict[str, Any] = {"system": system_of(name).called}
            if plan.ready((name,)):
                lm, ae = (found(perplexity(plan, name, kind)) or {} for kind in (LM, AE))
                row |= {
                    "LM-PPL": lm.get("perplexity"),
                    "AE-PPL": ae.get("perplexity"),
                    "BLEU-4": ae.get("bleu4"),
                    "texts": lm.get("texts"),
                }
            rows.append(row)
        text = (
            f"After pretraining, at {RATIO:g}x, on texts that nothing was trained on. LM-PPL: of a text's second half "
            "behind the memory of its first. AE-PPL and BLEU-4: of the text itself behind its memory, piece by piece, "
            "each asked for by its first eight tokens. The paper's figures of these are not known here."
        )
        return [*super().sections(plan, found), Section("What is said again", text, rows)]


class Pretraining(Experiment):
    """Perplexity after pretraining, and what it took."""

    covers = ("table10",)
    title = "Perplexity and time of pretraining (table 10)"
    systems: ClassVar[tuple[str, ...]] = ("sac", "epl", "500x", "icae")

    def runs(self, plan: Plan) -> Sequence[Spec]:
        return [perplexity(plan, name, LM) for name in plan.ready(self.systems)]

    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        rows: list[dict[str, Any]] = []
        samples: dict[str, Sample] = {}
        for name in self.systems:
            row: dict[str, Any] = {"system": system_of(name).called, "paper PPL": paper.PERPLEXITY[name]}
            if plan.ready((name,)):
                spec = perplexity(plan, name, LM)
                if run := found(spec):
                    samples[name] = sample = Sample.of({spec.file: run["losses"]})
                    low, high = sample.interval
                    row["PPL"] = with_interval(run["perplexity"], (math.exp(low), math.exp(high)))
                if trained := found(spec.adapter):
                    row |= trained_row(spec.adapter, trained)
            rows.append(row)
        known = {name: math.log(value) for name, value in paper.PERPLEXITY.items()}
        text = paragraphs(
            f"Perplexity of a text's second half behind the memory of its first, at {RATIO:g}x (the paper's ratio "
            "is not known here), intervals over texts. Pairs are compared in nats. Equal steps; autoencoding reads "
            "each text once more.",
            plan.lacking(self.systems),
            found.failures(self.runs(plan)),
        )
        return [Section("After pretraining", text, rows, compared(known, samples, less_is_better=True))]


def trained_row(spec: Train, run: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of a stage of training."""
    seconds = run["seconds"]
    return {
        "objective": spec.objective,
        "steps": run["steps"],
        "minutes": seconds / 60,
        "tokens a second": run["tokens"] / seconds if seconds else None,
    }


class Long(Answers):
    """Questions about contexts of many sub-contexts."""

    covers = ("table21",)
    title = "Questions about long contexts (table 21)"
    systems = ("full-ft", "sac", "epl", "500x", "icae", "beacon", "dast", "text", "kvzip", "attention-matching")
    groups = ("long",)
    about = "Contexts that are compressed as many consecutive sub-contexts, cut to what the scale reads."

    def ratios(self, plan: Plan) -> Sequence[float]:
        return (RATIO,)

    def known(self, ratio: float, group: str) -> Mapping[str, tuple[float, float | None]]:
        return {}

    def scores(self, plan: Plan, name: str, group: str, ratio: float) -> list[Score]:
        return plan.scores(name, group, ratio, context_tokens=plan.scale.long_tokens)


class Summaries(Answers):
    """Meetings and reports summarised from memory, by adapters finetuned on summaries."""

    covers = ("table8", "table20")
    title = "Summaries (tables 8, 20)"
    systems = ("full-ft", "sac", "epl", "500x", "icae")
    groups = ("summaries",)
    about = (
        "Adapters finetuned on summaries; F1 is ROUGE-1 as the paper has it. The paper's figures are means of QMSum "
        "and GovReport with 32K tokens of input, from a reader's notes on it, not checked."
    )

    def ratios(self, plan: Plan) -> Sequence[float]:
        return (RATIO,)

    def known(self, ratio: float, group: str) -> Mapping[str, tuple[float, float | None]]:
        return {name: (rouge, None) for name, rouge in paper.SUMMARIES.items()}

    def scores(self, plan: Plan, name: str, group: str, ratio: float) -> list[Score]:
        s = plan.scale
        more = {"answer_tokens": s.summary_tokens, "context_tokens": s.long_tokens}
        return plan.scores(name, group, ratio, for_=SUMMARIES, **more)
