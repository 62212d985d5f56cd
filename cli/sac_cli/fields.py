"""Documented dataclass fields become flags: name, type, default and help are read from the source, never written twice.

The source is parsed, not imported, so that `--help` of a training command does not load torch.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sac_cli.options import split_commas
from sac_rag.errors import ConfigError

_SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass as a flag."""

    field: str
    kind: str
    """The annotation as written: int, float | None, tuple[float, ...], …"""
    default: Any
    doc: str
    prefix: str = ""
    panel: str | None = None

    @property
    def name(self) -> str:
        return self.prefix + self.field

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def _scalar(self) -> type | None:
        return _SCALARS.get(self.kind.removesuffix(" | None"))

    def parameter(self) -> inspect.Parameter:
        """The flag, None unless it is given: what is not given is left to sac_rag's own default."""
        flags = [f"-{self.name}", self.flag] if len(self.name) == 1 else [self.flag]
        if self._scalar is bool:
            flags = [f"{self.flag}/--no-{self.flag[2:]}"]
        text = self.doc.replace("[", r"\[")
        if self.default is not None:
            text += rf" [dim]\[default: {self._shown().replace('[', chr(92) + '[')}][/dim]"
        option = typer.Option(*flags, help=text, rich_help_panel=self.panel, show_default=False)
        annotation: Any = Annotated[(self._scalar or list[str]) | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def _shown(self) -> str:
        if isinstance(self.default, tuple):
            return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in self.default)
        return repr(self.default) if isinstance(self.default, str) and "\n" in self.default else str(self.default)

    def value(self, given: Any) -> Any:
        """A given flag as the field's own type; lists are repeated, written with commas, or both."""
        if self._scalar:
            return given
        try:
            return tuple(map(_SCALARS[self.kind[6:].split(",")[0].rstrip("]")], split_commas(given)))
        except ValueError:
            shown = ",".join(map(str, given))
            raise ConfigError(f"{self.flag} is {shown!r}; write numbers with commas, such as {self._shown()}") from None


def settings_of(place: str, *, prefix: str = "", panel: str | None = None) -> tuple[Setting, ...]:
    """The fields of "module:Dataclass", with the docstrings below them."""
    module, _, name = place.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, place
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            value = constants[node.value.id] if isinstance(node.value, ast.Name) else node.value
            doc = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = " ".join(str(after.value.value).split())
            found.append(
                Setting(node.target.id, ast.unparse(node.annotation), ast.literal_eval(value), doc, prefix, panel)
            )
    return tuple(found)


def given(settings: Sequence[Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that were set by flag, environment or file, as keyword arguments of their dataclass."""
    return {s.field: s.value(values[s.name]) for s in settings if values.get(s.name) is not None}
