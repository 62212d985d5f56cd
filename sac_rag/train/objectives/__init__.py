"""Objectives by name: what a stage of training teaches. A new one is a file and a line below."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from sac_rag.errors import ConfigError
from sac_rag.registry import Registry
from sac_rag.train.config import TrainConfig

OBJECTIVES = Registry(
    "objective",
    {
        "qa": "sac_rag.train.objectives.questions:Questions",
        "summarise": "sac_rag.train.objectives.questions:Summaries",
        "lm": "sac_rag.train.objectives.texts:Continuation",
        "ae": "sac_rag.train.objectives.texts:Autoencoding",
        "ae+lm": "sac_rag.train.objectives.texts:Both",
        "salience": "sac_rag.train.salience:Salience",
        "budget": "sac_rag.train.budgeting:HeadBudget",
        "reader": "sac_rag.train.objectives.reading:Answering",
    },
)


def fields_of(objective: str) -> dict[str, str]:
    """The settings that a stage of this objective reads, with their types as written."""
    own, common = dataclasses.fields(OBJECTIVES.load(objective).Settings), dataclasses.fields(TrainConfig)
    return {f.name: str(f.type) for f in (*common, *own) if f.name != "own"}


def configured(objective: str = "qa", **values: Any) -> TrainConfig:
    """A stage by the names of its settings; raises ConfigError for one that the objective does not read."""
    known = fields_of(objective)
    if strange := next((name for name in values if name not in known), None):
        raise ConfigError(f"objective {objective} reads no setting {strange!r}; it has {', '.join(known)}")
    kind = OBJECTIVES.load(objective).Settings
    mine: Mapping[str, Any] = {f.name: values.pop(f.name) for f in dataclasses.fields(kind) if f.name in values}
    return TrainConfig(objective=objective, own=kind(**mine), **values)
