"""What an evaluation has to compute: a job a run, what it is stored under, and the order that keeps processors busy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any

from sac_rag.compress.methods import METHODS
from sac_rag.evaluate.prompts import ANSWER_TOKENS
from sac_rag.evaluate.readers import QuestionReader, ratios_of, reader_of
from sac_rag.evaluate.results import Origin, Results, file_sha256
from sac_rag.evaluate.runs import Run, Scored
from sac_rag.evaluate.tasks import Task
from sac_rag.models.loading import choose_device, choose_dtype


@dataclass(frozen=True)
class Work:
    """What all jobs of an evaluation share, as `evaluate` takes it."""

    model: str
    limit: int | None
    seed: int
    batch: int
    device: str
    dtype: str


EngineOf = tuple[str, str, tuple[str, ...]]
"""Method, adapter, and options of the method."""


@dataclass(frozen=True)
class Variant:
    """A reader in one of its settings: a run a file. called: the name of its adapter, where there are several."""

    reader: str
    method: str
    adapter: str
    called: str | None = None
    ratio: float | None = None
    prompt: str | None = None
    option: tuple[str, ...] = ()
    """As of `IndexConfig`."""

    @cached_property
    def by(self) -> QuestionReader:
        return reader_of(self.reader)

    @property
    def engine(self) -> EngineOf:
        """What is loaded for it, besides the base model."""
        return self.method, self.adapter, self.option

    @property
    def label(self) -> str:
        """What it is called while it runs."""
        return " ".join(filter(None, (self.by.label(self.method, self.ratio), self.called, self.prompt)))


def variants(
    readers: Sequence[str],
    methods: Sequence[str],
    adapters: Mapping[str | None, str],
    full_ft_adapter: str,
    ratios: Sequence[float],
    prompts: Sequence[str | None] = (None,),
    option: tuple[str, ...] = (),
) -> Iterator[Variant]:
    """Readers in all the settings that are theirs, in the order of the table: those of memory once per method, its
    ratios, and adapters where it has such. Those that compress nothing take the first method's layout."""
    for name in readers:
        reader = reader_of(name)
        if reader.own_adapter:
            for at in map(float, ratios) if reader.at_ratios else (None,):
                yield Variant(name, reader.own_adapter, full_ft_adapter, ratio=at)
            continue
        for method in methods if reader.compressed else methods[:1]:
            own = adapters if len(methods) == 1 or METHODS.load(method).trains else {None: "default"}
            if not reader.compressed:
                own = {None: next(iter(own.values()))}
            own_ratios = ratios_of(method, ratios) if reader.compressed else (None,)
            for (called, folder), ratio, prompt in itertools.product(own.items(), own_ratios, prompts):
                yield Variant(name, method, folder, called, ratio, prompt, option)


@dataclass(frozen=True, eq=False)
class Job:
    """A variant on a file. cost: estimated, in characters read. settings: what the run is stored under."""

    variant: Variant
    file: str
    questions: int
    cost: int
    settings: Mapping[str, Any]
    run: type[Run] = field(default=Run, repr=False)
    """What is made of it."""

    @property
    def name(self) -> str:
        return f"{self.settings['set']}, {self.variant.label}"

    def to_mapping(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "run"}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Job:
        variant = values["variant"]
        return cls(**{**values, "variant": Variant(**{**variant, "option": tuple(variant["option"])})})


class Planner:
    """Makes jobs with the settings that determine their scores. Nothing is loaded to know them; without a place to
    store runs they are not looked up."""

    def __init__(self, work: Work, *, stored: bool) -> None:
        self._work = work
        self._dtype = str(choose_dtype(work.dtype, choose_device(work.device)))
        self.file_sha256 = cache(file_sha256 if stored else lambda file: "")
        self._origin = cache(lambda engine: Origin.of(work.model, *engine) if stored else None)

    def given(self, variant: Variant, file: str, task: Task, track: str) -> Job:
        """On contexts of the file itself."""
        named = {"prompt": variant.prompt} if variant.prompt else {}
        return self.job(variant, file, task, track, {"answer_tokens": ANSWER_TOKENS, **named})

    def job(
        self, variant: Variant, file: str, task: Task, track: str, more: Mapping[str, Any], run: type[Run] = Run
    ) -> Job:
        """more: settings that runs of this track alone have."""
        origin = self._origin(variant.engine)
        settings = {
            **{"track": track, "set": task.name, "file_sha256": self.file_sha256(file)},
            **{"limit": self._work.limit, "seed": self._work.seed},
            **{"reader": variant.reader, "ratio": variant.ratio, "dtype": self._dtype},
            **more,
            **(origin.determines(variant.by.by_adapter, variant.by.reads) if origin else {}),
        }
        return Job(variant, file, task.questions, variant.by.cost(task), settings, run)


def complete(
    jobs: Iterable[Job],
    results: Results | None,
    compute: Callable[[list[Job]], Iterable[tuple[Job, Scored[Any]]]],
) -> dict[Job, Scored[Any]]:
    """The runs of jobs: those that are stored, and the others as `compute` yields them, stored one by one."""
    found = {job: results.find(job.run, job.settings) if results else None for job in jobs}
    done = {job: scored for job, scored in found.items() if scored}
    for job, scored in compute([job for job in found if job not in done]):
        if results and not results.path(job.settings).exists():  # a worker stores what it has computed
            results.keep(scored, job.settings)
        done[job] = scored
    return done


def take(left: list[Job], engine: EngineOf | None) -> Job:
    """Remove the longest job of a list; one for the engine that is loaded, unless it is less than half as long."""
    longest = max(left, key=lambda job: job.cost)
    own = max((j for j in left if j.variant.engine == engine), key=lambda job: job.cost, default=longest)
    chosen = own if 2 * own.cost >= longest.cost else longest
    left.remove(chosen)
    return chosen
