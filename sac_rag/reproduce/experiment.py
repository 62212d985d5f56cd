"""What an experiment is, and the table of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from sac_rag.errors import ConfigError, did_you_mean
from sac_rag.registry import Registry
from sac_rag.reproduce.page import Section
from sac_rag.reproduce.plan import Found, Plan
from sac_rag.reproduce.specs import Spec

EXPERIMENTS = Registry(
    "experiment",
    {
        "methods": "sac_rag.reproduce.experiments.questions:Methods",
        "components": "sac_rag.reproduce.experiments.questions:Components",
        "selection": "sac_rag.reproduce.experiments.questions:Selection",
        "autoencoding": "sac_rag.reproduce.experiments.texts:Autoencoding",
        "sizes": "sac_rag.reproduce.experiments.sizes:Sizes",
        "summaries": "sac_rag.reproduce.experiments.texts:Summaries",
        "pretraining": "sac_rag.reproduce.experiments.texts:Pretraining",
        "flops": "sac_rag.reproduce.experiments.costs:Operations",
        "latency": "sac_rag.reproduce.experiments.costs:Compression",
        "long": "sac_rag.reproduce.experiments.texts:Long",
        "space": "sac_rag.reproduce.experiments.pictures:Space",
        "losses": "sac_rag.reproduce.experiments.pictures:Losses",
        "attention": "sac_rag.reproduce.experiments.pictures:Maps",
        "gradients": "sac_rag.reproduce.experiments.pictures:Angles",
        "trade-off": "sac_rag.reproduce.experiments.pictures:TradeOff",
    },
)
"""One page each, in the order of the paper's tables, then of its figures."""


class Experiment(ABC):
    """A group of the paper's tables or figures that the same runs fill."""

    covers: ClassVar[tuple[str, ...]]
    """Names of the paper's tables and figures: table1, figure4, …"""
    title: ClassVar[str]

    @abstractmethod
    def runs(self, plan: Plan) -> Sequence[Spec]:
        """All runs that it shows; those that these need come by themselves."""

    @abstractmethod
    def sections(self, plan: Plan, found: Found) -> Sequence[Section]:
        """The page, of what is there."""


def experiment_of(name: str) -> Experiment:
    experiment: Experiment = EXPERIMENTS.load(name)()
    return experiment


def chosen(names: Iterable[str] | None) -> list[str]:
    """Experiments by their names or those of tables and figures, in the order of the table; None is all.

    Raises ConfigError for a name that is none.
    """
    covers = {name: experiment_of(name).covers for name in EXPERIMENTS}
    if names is None:
        return list(covers)
    known = {part: name for name, parts in covers.items() for part in (name, *parts)}
    wanted = set()
    for given in names:
        if given not in known:
            hint = did_you_mean(given, known)
            raise ConfigError(f"unknown experiment {given!r}.{hint} Known: {', '.join(known)}.")
        wanted.add(known[given])
    return [name for name in covers if name in wanted]
