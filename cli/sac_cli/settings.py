"""`sac.toml`, or `[tool.sac]` of pyproject.toml, in the working directory: defaults for flags.

A key at the top sets that flag for every command that has it, a table for one command. Unknown keys are fatal.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sac_cli.shell import commands_below, settable
from sac_rag.errors import ConfigError


def read(folder: Path) -> tuple[str, dict[str, Any]]:
    """(where from, settings) of a folder; sac.toml goes before pyproject.toml, and neither is needed."""
    for name in ("sac.toml", "pyproject.toml"):
        path = folder / name
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            if name == "pyproject.toml":  # not ours to judge
                continue
            raise ConfigError(f"{name} cannot be read: {error}") from error
        if name == "sac.toml":
            return name, content
        tool = content.get("tool")
        own = tool.get("sac") if isinstance(tool, dict) else None
        if isinstance(own, dict):
            return "[tool.sac] of pyproject.toml", own
    return "", {}


def defaults(root: Any, folder: Path) -> dict[str, Any]:
    """The settings of a folder as the tree of defaults that the parser asks below flags and environment."""
    where, content = read(folder)
    return _defaults(root, content, {}, where)


def _defaults(command: Any, table: Mapping[str, Any], outer: Mapping[str, Any], where: str) -> dict[str, Any]:
    below = {c.name: c for c in commands_below(command)}
    anywhere = set().union(*map(_flags, below.values())) if below else set()
    known = {*settable(command), *below, *anywhere}
    values, tables = dict(outer), dict[str, Mapping[str, Any]]()
    for written, value in table.items():
        key = written if written in below else written.replace("-", "_")
        if key not in known:
            name = f"[{command.name}] " if not below else ""
            raise ConfigError(f"{where}: unknown setting {name}{written!r}.{_nearest(key, known)}")
        if (key in below) != isinstance(value, dict):
            wanted = "a table, such as" if key in below else "a value, not a table:"
            raise ConfigError(f"{where}: {written!r} must be {wanted} {f'[{key}]' if key in below else f'{key} = …'}")
        if key in below:
            tables[key] = value
        else:
            values[key] = value
    found: dict[str, Any] = {}
    for flag, parameter in settable(command).items():
        if flag in values:
            found[parameter.name] = _plain(values[flag], parameter)
    for name, inner in below.items():
        found[name] = _defaults(inner, tables.get(name, {}), values, where)
    return found


def _flags(command: Any) -> set[str]:
    return {*settable(command)}.union(*map(_flags, commands_below(command)))


def _plain(value: Any, parameter: Any) -> Any:
    """A list where one text is wanted is written with commas, as on the command line."""
    if getattr(parameter, "multiple", False):
        return value if isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
