"""Following a recipe: stage after stage, each in a folder of its own, resumed where it was left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import READER_WEIGHTS, Card, write_atomic
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError
from sac_rag.foreign import parse_object, read_text
from sac_rag.models.adapters import CARD, WEIGHTS
from sac_rag.models.loading import choose_device
from sac_rag.train import checkpoint
from sac_rag.train.loop import CHECKPOINT, Progress
from sac_rag.train.objectives import configured
from sac_rag.train.recipes import Recipe, Stage
from sac_rag.train.run import run
from sac_rag.train.team import Team

PLAN = "recipe.json"


@dataclass(frozen=True)
class Followed:
    """What has been made: the card of the last stage that was trained, and where it lies."""

    card: Card
    folder: Path
    whole: bool
    """Whether every stage is over; the adapter then lies in the output folder itself."""


def follow(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    licence: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seconds: float | None = None,
    listen: Callable[[Stage, Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Followed:
    """Train `recipe` on the folder `data` in output/1-NAME, output/2-NAME, …; the last adapter ends in `output`.

    Called again it goes on where it was; stages that are finished, or that a later one began from, stay as they are.
    seconds: time for what is left, shared out by the stages' sizes: a stage that runs out of it is cut short, and the
    next begins. stop: as in `train`; a true answer ends all. Raises ConfigError when files are missing or `output`
    holds the work of another recipe.
    """
    output, device_ = Path(output), choose_device(device)
    files = recipe.files(data)
    base = base or DEFAULT_MODEL
    team = Team.join(device_)
    _agree(recipe, base, output, write=team.leads)
    folders = [output / f"{n}-{stage.name}" for n, stage in enumerate(recipe.stages, 1)]
    begun = max((n for n, f in enumerate(folders) if (f / CARD).is_file() or (f / CHECKPOINT).is_file()), default=0)
    before: Path | None = None
    card: Card | None = None
    asked = False
    fresh: dict[str, Any] = {"base": base, "method": recipe.method, "lora": recipe.lora}
    fresh |= {"layout": recipe.layout} if recipe.layout else {}
    options = dict(recipe.options)

    def user_stops() -> bool:
        nonlocal asked
        asked = asked or bool(stop and stop())
        return asked

    for n, (stage, folder) in enumerate(zip(recipe.stages, folders, strict=True)):
        options |= stage.options
        card = Card.read(folder) if (folder / CARD).is_file() else None
        if card is None or (n == begun and not _over(card, stage)):
            share = stage.tokens / sum(s.tokens for s in recipe.stages[n:])
            start = time.monotonic()
            until = math.inf if seconds is None else start + seconds * share

            def ends(until: float = until) -> bool:
                return user_stops() or time.monotonic() > until

            def heard(progress: Progress, stage: Stage = stage) -> None:
                if listen:
                    listen(stage, progress)

            card = run(
                files[n],
                folder,
                stage.config,
                licence=recipe.licence if licence is None else licence,
                device=device,
                dtype=dtype,
                listen=heard,
                stop=ends,
                options=options,
                **(fresh if before is None else {"start_from": before}),
            )
            seconds = None if seconds is None else seconds - (time.monotonic() - start)
            stopped = team.any(user_stops())
            if stopped and not (stage is recipe.stages[-1] and _over(card, stage)):
                return Followed(card, folder, whole=False)
        before = folder
    assert card is not None and before is not None, "a recipe has stages"
    if team.leads and not _same(before, output):
        reader = (READER_WEIGHTS,) if card.reader else ()
        for name in (WEIGHTS, *reader, CARD):  # the card last: with it an adapter is whole
            write_atomic(output / name, (before / name).read_bytes())
    team.meet()
    return Followed(card, output, whole=True)


def _same(stage: Path, output: Path) -> bool:
    """Whether the output has this stage's adapter already: its card may have been calibrated since."""
    return (output / CARD).is_file() and (output / WEIGHTS).read_bytes() == (stage / WEIGHTS).read_bytes()


def _over(card: Card, stage: Stage) -> bool:
    return bool(card.training["stages"][-1]["steps_done"] >= stage.config.steps)


def _agree(recipe: Recipe, base: str, output: Path, *, write: bool) -> None:
    """Note in `output` what is made there; refuse to go on with something else."""
    plan: dict[str, Any] = {"recipe": recipe.name, "base": base, "method": recipe.method, "options": recipe.options}
    plan |= {"lora": recipe.lora.to_mapping() if recipe.lora else {}}
    plan |= {"layout": recipe.layout} if recipe.layout else {}
    unsaid: dict[str, Any] = {}  # what a plan of earlier code leaves out
    for stage in recipe.stages:
        plan |= {f"{stage.name}.{key}": value for key, value in stage.config.flat().items()}
        plan |= {f"{stage.name}.options.{key}": value for key, value in stage.options.items()}
        plan |= {f"{stage.name}.data": stage.data}
        unsaid |= {f"{stage.name}.{key}": value for key, value in configured(stage.config.objective).flat().items()}
    plan, unsaid = json.loads(json.dumps(plan)), json.loads(json.dumps(unsaid))
    path = output / PLAN
    if path.is_file():
        try:
            noted = parse_object(read_text(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} does not parse ({error}); use another output folder") from error
        more = dict.fromkeys(key for key in noted if key.endswith(".data") or ".options." in key)
        checkpoint.check_same(output, dict.fromkeys(plan) | unsaid | noted, more | plan)
    elif write:
        output.mkdir(parents=True, exist_ok=True)
        write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())
