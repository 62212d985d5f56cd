"""`sac verify`: does everything in a library agree?"""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Json, LibraryFolder, local
from sac_cli.options import opened as opened_with_model
from sac_cli.shell import command
from sac_rag.errors import ConfigError, LibraryCorrupt


@command(
    "verify",
    example="""
    sac verify
    sac verify --shallow --library my.lib
    sac verify --deep 50                          also compress 50 passages again and compare
    """,
)
def verify(
    library: LibraryFolder = DEFAULT_LIBRARY,
    shallow: Annotated[bool, typer.Option("--shallow", help="Leave out reading every stored memory.")] = False,
    deep: Annotated[
        str | None,
        typer.Option(
            help="Also read the model's files whole, and compare memories with what it makes of their text: of this "
            "many passages, or of 'all'.",
            metavar="N",
        ),
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Check a library on disk: counts, ids, checksums of every byte. Names every damaged document and goes on.

    Exit code 1 when something is wrong; `sac repair` mends what can be.
    """
    from sac_rag.library.library import Library

    sample, library = _sample(deep), local(library)
    try:
        with console.working("reading every byte"), Library.open(library) as opened:
            problems = opened.verify(deep=not shallow)
        if deep is not None:
            with opened_with_model(library, device=device, dtype=dtype) as rag:
                found = [*rag.model_problems(), *rag.mismatches(sample)]
                problems += [line for line in found if line not in problems]
    except LibraryCorrupt as error:
        problems = [str(error)]
    if as_json:
        console.emit({"problems": problems})
    else:
        for problem in problems:
            print(console.one_line(problem))
        if not problems:
            console.hint("all is well")
    if problems:
        console.error(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {library}")
        raise typer.Exit(1)


def _sample(deep: str | None) -> int | None:
    """How many passages are compared; None for all."""
    if deep is None or deep == "all":
        return None
    if not deep.isdecimal() or int(deep) < 1:
        raise ConfigError(f"--deep is {deep!r}; write a number of passages, or all")
    return int(deep)
