"""`sac verify`: does everything in a library agree?"""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder
from sac_cli.shell import command
from sac_rag.errors import LibraryCorrupt


@command(
    "verify",
    example="""
    sac verify
    sac verify --shallow --library my.lib
    """,
)
def verify(
    library: LibraryFolder = DEFAULT_LIBRARY,
    shallow: Annotated[bool, typer.Option("--shallow", help="Leave out reading every stored memory.")] = False,
    as_json: Json = False,
) -> None:
    """Check a library on disk: counts, ids, checksums of every byte. Exit code 1 when something is wrong."""
    from sac_rag.library.library import Library

    try:
        with console.working("reading every byte"), Library.open(library) as opened:
            problems = opened.verify(deep=not shallow)
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
