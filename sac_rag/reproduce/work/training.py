"""A stage of training as a run: an adapter in a folder of its own, gone on with where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.methods import METHODS
from sac_rag.evaluate.report import thinned
from sac_rag.reproduce.place import ADAPTERS, Place
from sac_rag.reproduce.specs import Train
from sac_rag.train.loop import Progress
from sac_rag.train.objectives import configured, fields_of
from sac_rag.train.run import run
from sac_rag.train.specs import sources_of

CURVE = 200
"""Points of a loss curve that are kept."""
RECORDED = ("loss", "recall", "cosine")
"""What of a step is kept, where its objective records it: all smoothed over the steps."""

Listen = Callable[[int, int], None]
"""(units done, units in all)."""
Stop = Callable[[], bool]


class Stopped(Exception):
    """The run was asked to stop, and saved what it had."""


def settings_for(spec: Train) -> dict[str, Any]:
    """The settings of the stage that its objective reads."""
    known = fields_of(spec.objective)
    return {name: value for name, value in spec.settings if name in known}


def compute(spec: Train, place: Place, listen: Listen, stop: Stop) -> dict[str, Any]:
    """Train, and tell the loss curve, time and size; raises Stopped when `stop` ended it early."""
    place.unload()
    folder = place.folder(ADAPTERS, spec)
    config = configured(spec.objective, **settings_for(spec))
    adapts = METHODS.load(spec.method).adapts

    def heard(progress: Progress) -> None:
        listen(progress.step, progress.steps)

    fresh: dict[str, Any] = {"method": spec.method, "layout": dict(spec.layout) or None}
    if adapts != "nothing":
        fresh["lora"] = LoraSpec(**dict(spec.lora))
    card = run(
        data_of(spec.data, place),
        folder,
        config,
        base=place.model(spec.model),
        device=place.device,
        dtype=place.dtype,
        listen=heard,
        stop=stop,
        options=dict(spec.options),
        **(fresh if spec.start is None else {"start_from": place.adapter(spec.start)}),
    )
    stage = card.training["stages"][-1]
    if stage["steps_done"] < config.steps:
        raise Stopped
    return {
        "steps": stage["steps_done"],
        "examples": stage["examples"],
        "tokens": stage["tokens"],
        "seconds": stage["seconds"],
        "final_loss": stage["final_loss"],
        "curve": curve(folder),
    }


def data_of(data: tuple[str, ...], place: Place) -> list[str]:
    """PATH=WEIGHT of files in the folder of data."""
    return [f"{place.file(path)}={weight!r}" for path, weight in sources_of(data)]


def curve(folder: Path) -> list[dict[str, float]]:
    """What was recorded of a run by step, thinned; a step that was repeated after a kill counts once."""
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = {row["step"]: row for row in map(json.loads, lines)}
    rows = [
        {"step": step, **{name: flat[name] for name in RECORDED if name in flat}}
        for step, row in sorted(steps.items())
        for flat in ({**row, **row["extra"]},)
    ]
    return thinned(rows, CURVE)
