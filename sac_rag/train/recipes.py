"""Recipes: named lists of training stages over the folder of data, so that an adapter can be made again by one command.

They are data: `recipes.toml` beside this file holds those of the package and says how one is written.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.methods import METHODS
from sac_rag.errors import ConfigError
from sac_rag.foreign import leaves, read_text
from sac_rag.train.config import TrainConfig
from sac_rag.train.objectives import configured, fields_of
from sac_rag.train.specs import kind_of, sources_of


@dataclass(frozen=True)
class Stage:
    """One run of training. It starts from the adapter of the stage before it, the first one from nothing."""

    name: str
    data: tuple[str, ...]
    """PATH=WEIGHT, cloze:PATH=WEIGHT or quote:PATH=WEIGHT, relative to the data folder."""
    config: TrainConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of the method that it changes, for itself and the stages behind it."""

    @property
    def tokens(self) -> int:
        """Tokens that it passes through the model, roughly: its share of a recipe's time."""
        return self.config.steps * self.config.accumulate * self.config.step_tokens

    def files(self, folder: Path) -> tuple[list[str], list[str]]:
        """(PATH=WEIGHT of the files in `folder`, patterns that match none there)."""
        found: list[str] = []
        missing: list[str] = []
        for spec, weight in sources_of(self.data):
            kind, pattern = kind_of(spec)
            paths = sorted(folder.glob(pattern))
            found += [f"{kind}{path}={weight / len(paths)!r}" for path in paths]
            missing += [] if paths else [pattern]
        return found, missing


@dataclass(frozen=True)
class Recipe:
    """What an adapter is and the stages that make it."""

    name: str
    about: str
    """What it makes, and in what time on what."""
    stages: tuple[Stage, ...]
    method: str = "sac"
    options: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraSpec | None = field(default_factory=LoraSpec)
    """None where the method carries none."""
    layout: Mapping[str, str] = field(default_factory=dict)
    """Strings of the prompt, in place of those of the model's chat template."""
    licence: str = ""

    def scaled(self, factor: float) -> Recipe:
        """The same with `factor` times the steps, warm-up and causal start included; raises ConfigError below 0."""
        if not 0 < factor < float("inf"):
            raise ConfigError(f"the scale of the steps is {factor:g}; it must be above 0")
        return dataclasses.replace(
            self,
            stages=tuple(dataclasses.replace(stage, config=stage.config.scaled(factor)) for stage in self.stages),
        )

    def regrouped(self, tokens: int) -> Recipe:
        """The same steps in micro-batches of about `tokens` tokens: larger ones suit a large GPU."""
        stages = []
        for stage in self.stages:
            parts = max(1, round(stage.config.step_tokens * stage.config.accumulate / tokens))
            size = -(-stage.config.step_tokens * stage.config.accumulate // parts)
            stages.append(
                dataclasses.replace(stage, config=dataclasses.replace(stage.config, step_tokens=size, accumulate=parts))
            )
        return dataclasses.replace(self, stages=tuple(stages))

    def files(self, folder: str | Path) -> list[list[str]]:
        """Per stage its files in the data folder; raises ConfigError naming those that are missing."""
        folder = Path(folder)
        found = [stage.files(folder) for stage in self.stages]
        if missing := list(dict.fromkeys(m for _, lacking in found for m in lacking)):
            rest = f" (missing too: {', '.join(missing[1:])})" if missing[1:] else ""
            raise ConfigError(
                f"the recipe {self.name} needs {missing[0]}, which is not in the data folder {folder}{rest}; "
                "give the folder that holds lm/, qa/ and summ/"
            )
        return [files for files, _ in found]


class _File:
    """The tables of a file of recipes, over those of the package."""

    TABLES = ("data", "settings", "recipes")

    def __init__(self, path: Path, below: _File | None = None) -> None:
        self.path = path
        try:
            own = tomllib.loads(read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            why = "it is nested too deep" if isinstance(error, RecursionError) else error
            raise ConfigError(f"{path} is no file of recipes ({why})") from error
        _known(own, self.TABLES, str(path))
        self.names = tuple(own.get("recipes", ()))
        self._data, self._settings, self._recipes = (
            (getattr(below, f"_{table}") if below else {}) | own.get(table, {}) for table in self.TABLES
        )

    def recipe(self, name: str) -> Recipe:
        """A recipe by name; raises ConfigError naming what is wrong with it, and where."""
        where = f"{self.path}, recipe {name}"
        try:
            return self._recipe(name, where)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:  # no table, or in a circle
            raise ConfigError(f"{where} has not the form of those in {_SHIPPED.path}: {error!r}") from error

    def _recipe(self, name: str, where: str) -> Recipe:
        values = self._whole(name, where)
        _known(values, ("about", "method", "options", "lora", "layout", "licence", "stages"), where)
        stages = tuple(self._stage(dict(stage), where) for stage in values.pop("stages", ()))
        if not stages:
            raise ConfigError(f"{where} has no stages; list some, or name a base that has them")
        given = values.pop("lora", {})
        lora: LoraSpec | None = LoraSpec(**_checked(LORA, given, f"{where}, lora"))
        if METHODS.load(values.get("method", "sac")).adapts == "nothing":
            if given:
                raise ConfigError(f"{where} gives a LoRA, and its method carries none: leave lora out")
            lora = None
        return Recipe(name, values.pop("about", ""), stages, lora=lora, **values)

    def _whole(self, name: str, where: str) -> dict[str, Any]:
        """A recipe's table with what it has from its base."""
        values = dict(self._find(self._recipes, name, "recipe", where))
        base = values.pop("base", None)
        if base is not None:
            values = {**self._whole(base, where), **values}
        before, change = values.pop("before", []), dict(values.pop("change", {}))
        stages = [*before, *({**stage, **change.pop(stage["name"], {})} for stage in values.get("stages", ()))]
        if change:
            raise ConfigError(f"{where} changes {next(iter(change))}, which is no stage of its base {base}")
        return {**values, "stages": stages}

    def _stage(self, values: dict[str, Any], where: str) -> Stage:
        where = f"{where}, stage {values.get('name')}"
        name, data, more = str(values.pop("name", "")), values.pop("data", []), values.pop("more", [])
        options, like = values.pop("options", {}), values.pop("like", None)
        files = self._find(self._data, data, "data", where) if isinstance(data, str) else data
        if not name or not files:
            raise ConfigError(f"{where} needs a name and data")
        if outside := next((f for f in (*files, *more) if leaves(kind_of(str(f))[1])), None):
            raise ConfigError(f"{where} names {outside!r}; files are named relative to the data folder, and lie in it")
        settings = {**(self._find(self._settings, like, "settings", where) if like else {}), **values}
        known = fields_of(settings.get("objective", "qa"))
        return Stage(name, (*files, *more), configured(**_checked(known, settings, where)), options)

    def _find(self, table: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
        if name not in table:
            raise ConfigError(f"{where} names the {kind} {name!r}, which is not there; use {', '.join(table)}")
        return table[name]


def _known(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    if unknown := next((name for name in values if name not in known), None):
        raise ConfigError(f"{where} has {unknown!r}; use {', '.join(known)}")


def _checked(fields: Mapping[str, str], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of settings, each of its type as written; raises ConfigError naming one that is not."""
    _known(values, fields, where)
    found = {}
    for name, value in values.items():
        many = fields[name].startswith("tuple")
        wanted = TYPES[fields[name].removeprefix("tuple[").partition(",")[0]]
        items = tuple(value) if isinstance(value, list) else (value,)
        strange = any(not isinstance(v, wanted) or (isinstance(v, bool) and bool not in wanted) for v in items)
        if many != isinstance(value, list) or strange:
            raise ConfigError(f"{where}: {name} is {value!r}, not {fields[name]}")
        found[name] = items if many else value
    return found


TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
LORA = {f.name: str(f.type) for f in dataclasses.fields(LoraSpec)}
_SHIPPED = _File(Path(__file__).with_suffix(".toml"))
RECIPES: Mapping[str, Recipe] = {name: _SHIPPED.recipe(name) for name in _SHIPPED.names}


def find_recipe(name: str) -> Recipe:
    """A recipe by name, or the only one of a .toml file; raises ConfigError naming those there are."""
    if name.endswith(".toml"):
        file = _File(Path(name), _SHIPPED)
        if len(file.names) != 1:
            raise ConfigError(f"{name} holds {len(file.names)} recipes ({', '.join(file.names)}); give a file with one")
        return file.recipe(file.names[0])
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; use {', '.join(RECIPES)} or a .toml file")
    return RECIPES[name]
