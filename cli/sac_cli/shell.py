"""The application object, and `command`, by which every file here adds its command to it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sac_cli import console
from sac_cli.fields import Setting


def _sparing(parameter: Any) -> Any:
    """Let values of a parameter that need no checking pass unchecked: none, a default number, a text where one is
    wanted. The parser checks with pydantic, whose import takes longer than most commands work."""
    checked, many = parameter.process_value, parameter.multiple or parameter.nargs == -1
    wanted = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)

    def plain(value: Any) -> bool:
        if value is None:
            return not parameter.required
        if many:
            return bool(value) and wanted == list[str] and all(type(item) is str for item in value)
        default = type(value) in (int, float) and value is parameter.default
        return default or (type(value) is str and wanted is str)

    def process_value(context: Any, value: Any) -> Any:
        if not plain(value):
            return checked(context, value)
        if many:
            value = list(value) if value else ()
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    parameter.process_value = process_value
    return parameter


class _Sparing:
    """A command whose parameters are sparing, that of --help too."""

    def get_params(self, context: Any) -> list[Any]:
        found = super().get_params(context)  # type: ignore[misc]
        return [p if "process_value" in vars(p) else _sparing(p) for p in found]


class Command(_Sparing, TyperCommand):
    pass


class Group(_Sparing, TyperGroup):
    pass


# Locals stay out of tracebacks: they would show pieces of documents.
_SHELL: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "rich",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(name="sac", cls=Group, **_SHELL)

NOT_SETTINGS = {"help", "version", "install_completion", "show_completion"}
"""Flags that are neither read from the environment nor from sac.toml."""
OWN = {("demo", "library")}
"""(command, flag) that are given by hand alone: the demo's documents do not belong into a library of one's own."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.", rich_help_panel="Global")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks on errors.", rich_help_panel="Global")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours; as NO_COLOR=1.", rich_help_panel="Global")]
_GLOBAL = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    for name, annotation in (("quiet", Quiet), ("verbose", Verbose), ("no_color", NoColor))
]


def group(name: str, help_text: str) -> typer.Typer:
    """A command with commands of its own, such as `sac models`."""
    inner = typer.Typer(name=name, cls=Group, help=help_text, **_SHELL)
    app.add_typer(inner)
    return inner


def examples(lines: str) -> str:
    """The Examples block that ends a help page."""
    body = "\n".join(f"  {line.strip()}".replace("[", r"\[") for line in lines.strip().splitlines())
    return f"[bold]Examples[/bold]\n\n{body}"


def command(
    name: str, *, example: str, settings: Sequence[Setting] = (), to: typer.Typer = app
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as `sac NAME`: its own parameters, a flag for each setting (passed as keywords), global flags."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters.values()
        kept = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind is not p.VAR_KEYWORD]
        parameters = [*kept, *(s.parameter() for s in settings), *_GLOBAL]

        @functools.wraps(function)
        def run(*, quiet: bool, verbose: bool, no_color: bool, **values: Any) -> None:
            console.set_flags(quiet=quiet, verbose=verbose, no_color=no_color)
            function(**values)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        to.command(name, cls=Command, help=_paragraphs(function), epilog=examples(example))(run)
        return function

    return wrap


def _paragraphs(function: Callable[..., None]) -> str:
    """The docstring with its lines joined: the terminal decides where they break."""
    text = (inspect.getdoc(function) or "").replace("[", r"\[")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def flag_of(parameter: Any) -> str | None:
    """The long name of an option, such as "max_new_tokens"; None for an argument."""
    if parameter.param_type_name != "option":
        return None
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def settable(command: Any) -> dict[str, Any]:
    """Options of a command that may come from the environment or a file, by their long name."""
    found = ((flag_of(p), p) for p in command.params)
    return {flag: p for flag, p in found if flag and flag not in NOT_SETTINGS and (command.name, flag) not in OWN}


def with_environment(command: Any) -> Any:
    """Let every option of a command and of those below it be set as SAC_<FLAG>."""
    for flag, parameter in settable(command).items():
        parameter.envvar, parameter.show_envvar = f"SAC_{flag.upper()}", False
    for below in commands_below(command):
        with_environment(below)
    return command


def commands_below(command: Any) -> Iterable[Any]:
    return getattr(command, "commands", {}).values()
