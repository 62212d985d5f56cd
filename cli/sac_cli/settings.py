"""Defaults for flags from files: the user's own, and `sac.toml` or `[tool.sac]` of pyproject.toml where one works.

A key at the top sets that flag for every command that has it, a table for one command. Unknown keys are fatal. The
working folder may be somebody else's, cloned or unpacked: its file may say how answers are made and shown, and name
what lies in the same folder. It fetches nothing, skips no question, weakens no check and points nowhere else.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sac_cli import fields
from sac_cli.shell import commands_below, settable
from sac_rag.errors import ConfigError, did_you_mean
from sac_rag.foreign import read_text

NAME = "sac.toml"
MOST_BYTES = 1 << 20


PLACES = {
    *("library", "libraries", "output", "results", "data"),
    *("adapter", "full_ft_adapter", "from", "teacher", "recipe", "rerank", "reader_from", "gguf", "plots"),
}
"""Flags that it may set to what lies in the working folder; names of adapters and recipes are such too."""


@cache
def free() -> frozenset[str]:
    """Flags that a file of the working folder may set to anything: the worst they bring is a bad answer, or an error.

    The sources of settings are parsed for it: only a run with such a file waits for that.
    """
    documented = (
        "sac_rag.config:AskConfig",
        "sac_rag.train.config:TrainConfig",
        "sac_rag.train.objectives.reading:ReaderSettings",
        "sac_rag.train.objectives.texts:BothSettings",
        "sac_rag.train.objectives.base:ReadingSettings",
        "sac_rag.train.objectives.questions:QuestionSettings",
    )
    named = (
        {"ratio", "codec", "method", "passage_tokens", "overlap", "strict", "min_dead", "encoding", "main_text"}
        | {"quiet", "verbose", "no_color", "json", "where", "text", "both", "device", "dtype"}
        | {"reader", "prompt", "track", "sets", "pool", "contexts", "limit", "batch", "precision", "report"}
        | {"steps_scale", "micro_tokens", "option", "licence"}
        | {f"lora_{name}" for name in ("rank", "alpha", "targets", "whole", "start")}
        | {f"layout_{name}" for name in ("prefix", "before", "after", "end", "separator")}
        | {f"placing_{name}" for name in ("positions", "order", "prior")}
        | {"passages", "step", "deep", "wait", "missing_ok", "scale", "only", "systems", "faithful"}
        | {"tokens", "questions", "rounds", "quick", "mine", "warm", "idle", "stop"}
    )
    fields_of = (setting.name for place in documented for setting in fields.settings_of(place))
    return frozenset(named.union(fields_of) - PLACES)


MODELS = {"model": "base", "base": "base", "embedder": "embedder"}
"""As PLACES, or to a default model: flag -> kind."""


@dataclass(frozen=True)
class Source:
    """A file of settings."""

    where: str
    """What it is called in messages."""
    content: Mapping[str, Any]
    folder: Path | None
    """The working folder that it was found in, and is confined to; None for the user's own."""


def user_file() -> Path:
    """Where the user's own settings lie: SAC_CONFIG, else `sac.toml` in the user's configuration folder."""
    if chosen := os.environ.get("SAC_CONFIG"):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("sac-rag")) / NAME


def sources(folder: Path) -> list[Source]:
    """What a run in a folder goes by, the weaker first; none of them is needed."""
    found = []
    own = user_file()
    if (content := _toml(own, str(own))) is not None:
        found.append(Source(str(own), content, None))
    if (content := _toml(folder / NAME, NAME)) is not None:
        return [*found, Source(NAME, content, folder)]
    try:
        project = _toml(folder / "pyproject.toml", "pyproject.toml")
    except ConfigError:  # not ours to judge
        return found
    tool = (project or {}).get("tool")
    table = tool.get("sac") if isinstance(tool, dict) else None
    if isinstance(table, dict):
        found.append(Source("[tool.sac] of pyproject.toml", table, folder))
    return found


def _toml(path: Path, name: str) -> dict[str, Any] | None:
    """The content of a file; None where there is none. Raises ConfigError for what cannot be read or is no file."""
    try:
        return tomllib.loads(read_text(path, MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{name} cannot be read: {why}") from error


def defaults(root: Any, found_in: Iterable[Source]) -> dict[str, Any]:
    """The settings of files, the weaker first, as the tree of defaults that the parser asks below flags and
    environment. root: the tree of all commands, unless there is no file."""
    found = _defaults(root, {}, {}, Source("", {}, None))
    for source in found_in:
        found = _merged(found, _defaults(root, source.content, {}, source))
    return found


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(weak[name], value) if isinstance(value, dict) and name in weak else value
        for name, value in strong.items()
    }
    return {**weak, **both}


def _defaults(command: Any, table: Mapping[str, Any], outer: Mapping[str, Any], source: Source) -> dict[str, Any]:
    below = {c.name: c for c in commands_below(command)}
    anywhere = set().union(*map(_flags, below.values())) if below else set()
    known = {*settable(command), *below, *anywhere}
    values, tables = dict(outer), dict[str, Mapping[str, Any]]()
    for written, value in table.items():
        key = written if written in below else written.replace("-", "_")
        if key not in known:
            name = f"[{command.name}] " if not below else ""
            raise ConfigError(f"{source.where}: unknown setting {name}{written!r}.{_nearest(key, known)}")
        if (key in below) != isinstance(value, dict):
            wanted = "a table, such as" if key in below else "a value, not a table:"
            raise ConfigError(
                f"{source.where}: {written!r} must be {wanted} {f'[{key}]' if key in below else f'{key} = …'}"
            )
        if key in below:
            tables[key] = value
            continue
        if source.folder:
            _confine(key, value, source.where, source.folder)
        values[key] = value
    found: dict[str, Any] = {}
    for flag, parameter in settable(command).items():
        if flag in values:
            found[parameter.name] = _plain(values[flag], parameter)
    for name, inner in below.items():
        found[name] = _defaults(inner, tables.get(name, {}), values, source)
    return found


def _confine(flag: str, value: Any, where: str, folder: Path) -> None:
    """ConfigError for what a file of the working folder must not say."""
    instead = (
        f"This folder may be somebody else's: if it is what you want, give --{flag.replace('_', '-')}, set "
        f"SAC_{flag.upper()}, or write it into {user_file()}"
    )
    if flag in free():
        if flag == "option":  # of a method: a text, a number, or a place
            for item in value if isinstance(value, list) else [value]:
                name = str(item).partition("=")[2]
                if any(sign in name for sign in "/\\~") and not _lies_in(folder, name):
                    raise ConfigError(f"{where}: option {item!r} points out of this folder. {instead}")
        return
    if flag not in PLACES and flag not in MODELS:
        raise ConfigError(f"{where}: {flag!r} is not set by a file in the working folder. {instead}")
    from sac_rag.models.pinned import find_pinned

    for item in value if isinstance(value, list) else str(value).split(","):
        name = str(item).rpartition("=")[2] if flag == "adapter" else str(item)
        if flag in MODELS and find_pinned(name, MODELS[flag]):
            continue
        if flag in ("adapter", "full_ft_adapter") and name in ("default", "none"):
            continue
        if not _lies_in(folder, name):
            raise ConfigError(
                f"{where}: {flag} is {name!r}, and such a file names only what lies in its own folder"
                f"{', or a default model' * (flag in MODELS)}. {instead}"
            )
        if flag in MODELS and not (folder / name).exists():
            raise ConfigError(f"{where}: {flag} is {name!r}, which is not there, and is not fetched for it. {instead}")


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a relative path stays within a folder, links followed; it need not exist."""
    if not name.strip() or name.startswith("~") or "\0" in name or "://" in name or Path(name).is_absolute():
        return False
    try:
        return Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))
    except (OSError, ValueError):
        return False


def _flags(command: Any) -> set[str]:
    return {*settable(command)}.union(*map(_flags, commands_below(command)))


def _plain(value: Any, parameter: Any) -> Any:
    """A list where one text is wanted is written with commas, as on the command line."""
    if getattr(parameter, "multiple", False):
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _nearest(key: str, known: Iterable[str]) -> str:
    return did_you_mean(key, known) or f" Known: {', '.join(sorted(known))}."
