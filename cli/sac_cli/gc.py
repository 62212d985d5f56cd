"""`sac gc`: give the bytes of removed documents back."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, Wait
from sac_cli.shell import command


@command(
    "gc",
    example="""
    sac gc
    sac gc --min-dead 0.3 --library my.lib       rewrite only segments that are 30 % dead
    sac gc --dense auto                          with a million passages or more, search them approximately
    """,
)
def gc(
    library: LibraryFolder = DEFAULT_LIBRARY,
    min_dead: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="Leave segments with a smaller share of dead bytes; 0 erases all.")
    ] = 0.0,
    dense: Annotated[
        str | None,
        typer.Option(
            help="Make the index of vectors anew: exact, approximate (IVF-PQ: smaller and faster, and overlooks some), "
            "or auto, by the number of passages.",
            metavar="KIND",
        ),
    ] = None,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Give the bytes of removed passages back to the disk and erase their text. Safe to interrupt."""
    from sac_rag.library.library import Library

    with Library.open(library, write=True, wait=wait) as opened, console.working("rewriting segments"):
        report = opened.gc(min_dead=min_dead, dense=dense)
    if as_json:
        console.emit(dataclasses.asdict(report))
        return
    console.pairs(
        [
            ("bytes before", console.size(report.bytes_before)),
            ("bytes after", console.size(report.bytes_after)),
            ("segments before", report.segments_before),
            ("segments after", report.segments_after),
            ("passages moved", report.passages_moved),
        ]
    )
