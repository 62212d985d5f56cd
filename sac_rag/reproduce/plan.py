"""Systems and sets of a scale as runs: the one way in which experiments name them, so that they share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sac_rag.compress.methods import METHODS
from sac_rag.evaluate.readers import reader_of
from sac_rag.reproduce.order import Sample
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.scales import FINETUNE, PRETRAIN, SALIENCE, Scale
from sac_rag.reproduce.specs import Model, Score, Spec, Train, pairs
from sac_rag.reproduce.systems import PUBLISHED, PUBLISHED_HEADER, PUBLISHED_LAYOUT, System, system_of
from sac_rag.train.specs import sources_of

QUESTIONS, SUMMARIES, TEXTS = "qa", "summarise", "lm"
"""What an adapter is finetuned for; TEXTS leaves it pretrained."""


@dataclass(frozen=True)
class Plan:
    """What runs of a scale are called. systems: those that take part; None is all."""

    place: Place
    systems: Sequence[str] | None = None

    @property
    def scale(self) -> Scale:
        return self.place.scale

    def adapter(self, name: str, model: str | Model | None = None, for_: str = QUESTIONS) -> Train | None:
        """The last stage of a system's training; None for one that has none."""
        system = system_of(name)
        if system.like:
            return self.adapter(system.like, model, for_)
        if not system.trains:
            return None
        model = self.scale.model if model is None else model
        stages = [*system.objectives, *([] if for_ == TEXTS else [for_])]
        last: Train | None = None
        for objective in stages:
            last = self._stage(system, objective, model, last)
        return last

    def trained(self, name: str, for_: str = QUESTIONS) -> Train:
        """The last stage of a system that is trained."""
        last = self.adapter(name, for_=for_)
        assert last is not None, f"{name} is trained"
        return last

    def _stage(self, system: System, objective: str, model: str | Model, start: Train | None) -> Train:
        scale, reads = self.scale, METHODS.load(system.method).reads_with_lora
        kind, data = {
            QUESTIONS: (FINETUNE, scale.questions),
            SUMMARIES: (FINETUNE, scale.summaries),
            "salience": (SALIENCE, scale.questions),
        }.get(objective, (PRETRAIN, scale.texts))
        ratios = (1.0,) if reads else scale.ratios
        settings: dict[str, Any] = {
            **scale.settings[kind],
            **{"ratios": ratios, "ratio_weights": (1.0,) * len(ratios), "seed": scale.seed},
        }
        fresh = start is None
        options: Mapping[str, Any] = system.options if fresh else {}
        if scale.faithful and (published := PUBLISHED.get(system.method)):
            options = {**published, **options} if fresh else {"header": PUBLISHED_HEADER}
        return Train(
            system=system.name,
            method=system.method,
            objective=objective,
            model=model,
            data=self.data(data),
            settings=pairs(settings),
            options=pairs(options),
            lora=pairs(scale.lora) if fresh else (),
            layout=pairs(PUBLISHED_LAYOUT) if fresh and scale.faithful else (),
            start=start,
        )

    def data(self, given: Iterable[str]) -> tuple[str, ...]:
        """PATH=WEIGHT with patterns resolved in the folder of data; one that matches nothing stays as it is."""
        found: list[str] = []
        for pattern, weight in sources_of(list(given)):
            names = sorted(str(p.relative_to(self.place.data)) for p in self.place.data.glob(pattern)) or [pattern]
            found += [f"{name}={weight / len(names)!r}" for name in names]
        return tuple(found)

    def score(
        self,
        name: str,
        file: str,
        ratio: float | None,
        *,
        model: str | Model | None = None,
        for_: str = QUESTIONS,
        **more: Any,
    ) -> Score:
        """A system's answers to the questions of a file."""
        system, reader = system_of(name), reader_of(system_of(name).reader)
        only = METHODS.load(system.method).only_ratio if reader.compressed else None
        return Score(
            system=name,
            method=system.method,
            reader=system.reader,
            file=file,
            model=self.scale.model if model is None else model,
            ratio=only or (ratio if reader.compressed or reader.at_ratios else None),
            limit=self.scale.limit,
            seed=self.scale.seed,
            adapter=self.adapter(name, model, for_),
            **more,
        )

    def scores(self, name: str, group: str, ratio: float | None, **more: Any) -> list[Score]:
        """The same over all files of a group."""
        return [self.score(name, file, ratio, **more) for file in self.scale.sets[group]]

    def ready(self, names: Iterable[str]) -> list[str]:
        """Systems that take part, of which nothing lacks."""
        return [n for n in names if (self.systems is None or n in self.systems) and system_of(n).lacks() is None]

    def lacking(self, names: Iterable[str]) -> str:
        """Why others are not run, in one sentence; "" where all are."""
        names = list(names)
        left = set(names) - set(self.ready(names))
        why = [f"{system_of(n).called} ({system_of(n).lacks() or 'left out'})" for n in names if n in left]
        return f"Not run: {'; '.join(why)}." if why else ""


def needed(specs: Iterable[Spec]) -> list[Spec]:
    """All runs, each once, those that others need before them."""
    return list(dict.fromkeys(s for spec in specs for s in (*spec.before(), spec)))


@dataclass
class Found:
    """What runs have brought so far."""

    results: Mapping[Spec, dict[str, Any]] = field(default_factory=dict)
    failed: Mapping[Spec, str] = field(default_factory=dict)

    def __call__(self, spec: Spec) -> dict[str, Any] | None:
        return self.results.get(spec)

    def sample(self, specs: Iterable[Score], metric: str, scale: float = 100.0) -> Sample | None:
        """The mean of a metric over runs on several sets, in percent; None unless all are there."""
        found = {spec.file: self.results.get(spec) for spec in specs}
        if not found or not all(found.values()):
            return None
        return Sample.of({name: [scale * s for s in run["scores"][metric]] for name, run in found.items() if run})

    def mean(self, specs: Iterable[Score], column: str) -> float | None:
        """The mean of a column of runs; None unless all have it."""
        values = [(self.results.get(spec) or {}).get("run", {}).get(column) for spec in specs]
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def failures(self, specs: Iterable[Spec]) -> str:
        """Why runs, or those that they need, brought nothing, each reason once."""
        said = list(dict.fromkeys(f"{s.label}: {self.failed[s]}" for s in needed(specs) if s in self.failed))
        return "\n".join(f"* failed: {line}" for line in said)
