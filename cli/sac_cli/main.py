"""`sac`: global flags, and how errors end a run."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sac_cli import console, settings
from sac_cli.shell import NoColor, Quiet, Verbose, app, examples, with_environment
from sac_rag.errors import SacError

COMMANDS = (
    *("demo", "index", "add", "ask", "chat", "warm", "serve", "mcp", "ls", "info", "rm", "gc", "recode", "verify"),
    *("repair", "export", "pack", "unpack"),
    *("train", "eval", "reproduce", "calibrate", "codec", "bench", "models", "doctor"),
)
"""One module each; the order of `sac --help`."""

HELP = (
    "Compress documents once; every later question reads the compressed memory instead of the text.\n\n"
    "Every flag can also be set as SAC_<FLAG> in the environment (SAC_LIBRARY, SAC_MAX_NEW_TOKENS) or in sac.toml "
    "(or [tool.sac] of pyproject.toml): at its top for all commands, in a table such as [ask] for one."
)
EXAMPLES = """
sac demo                                  try it on sample documents
sac index handbook/ --library my.lib      compress a folder
sac ask "Who signs?" --library my.lib     ask it
"""


def version(asked: bool) -> None:
    if asked:
        from sac_rag import __version__

        print(f"sac {__version__}")
        raise typer.Exit


@app.callback(help=HELP.replace("[", r"\["), epilog=examples(EXAMPLES))
def root(
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_color: NoColor = False,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=version, is_eager=True, help="Print the version.", rich_help_panel="Global"),
    ] = False,
) -> None:
    console.set_flags(quiet=quiet, verbose=verbose, no_color=no_color)


def tree(*names: str) -> Any:
    """The commands of these names as the parser's tree; all commands where none is named.

    What a command line does not name is neither imported nor built: that takes longer than most commands work.
    """
    for name in names or COMMANDS:
        importlib.import_module(f"sac_cli.{name}")
    app.registered_commands.sort(key=lambda added: COMMANDS.index(str(added.name)))
    return with_environment(typer.main.get_command(app))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0 ok, 1 failure, 2 usage, 3 no library
    or one that is not used, 130 Ctrl-C."""
    console.prepare()
    if "--no-color" in args:  # help and usage errors are printed before flags are read
        console.set_flags(no_color=True)
    try:
        # A broken sac.toml must not hide the help that explains it, nor what a shell completes.
        plain = {"--help", "-h", "--version"} & set(args) or "_SAC_COMPLETE" in os.environ
        sources = [] if plain else settings.sources(Path.cwd())
        first = next((word for word in args if not word.startswith("-")), "")
        # A file is read against the flags of all commands, and a wrong word is compared with all names.
        command = tree(first) if first in COMMANDS and not sources else tree()
        command.main(args=list(args), prog_name="sac", default_map=settings.defaults(command, sources))
        return 0
    except SystemExit as end:  # how the parser ends a run, also a good one
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    except SacError as problem:
        return _failed(str(problem), problem.exit_code)
    except Exception as problem:
        hint = "" if console.state.verbose else " (run with -v for details)"
        return _failed(f"{type(problem).__name__}: {problem}{hint}", 1)


def _failed(message: str, code: int) -> int:
    if console.state.verbose:
        traceback.print_exc()
    console.error(message)
    return code


def main() -> None:
    """The entry point."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone; the interpreter would complain when it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
