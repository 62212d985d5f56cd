"""`sac repair`: mend a damaged library."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Json, LibraryFolder, Wait, check_present
from sac_cli.shell import command


@command(
    "repair",
    example="""
    sac repair
    sac repair --copy backup/catalog.sqlite --library my.lib
    """,
)
def repair(
    library: LibraryFolder = DEFAULT_LIBRARY,
    copy: Annotated[
        str | None,
        typer.Option(
            help="An older catalog.sqlite of this library, or a folder with one, to take damaged rows from. Where no "
            "catalog is left, all of it is taken, also what was removed since.",
            metavar="PATH",
        ),
    ] = None,
    wait: Wait = 0.0,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Mend a damaged library: keep what is sound, make search indexes, vectors and memories again from the text.

    Prints what is lost; index the documents again to have it back. Exit code 1 when something is.
    """
    check_present(library)
    with console.working("reading every byte"):
        from sac_rag.pipeline import repair as mend

        report = mend(library, copy=copy, wait=wait, device=device, dtype=dtype)
    if as_json:
        console.emit(dataclasses.asdict(report))
    else:
        for problem in report.problems:
            console.notice(problem)
        console.pairs(
            [
                ("problems found", len(report.problems)),
                ("memories made again", report.memories),
                ("vectors made again", report.vectors),
                ("rows taken back", report.taken_back),
                ("lost", len(report.lost)),
            ]
        )
        for line in report.lost:
            print(console.one_line(f"lost: {line}"))
        if report.kept:
            console.hint(f"the damaged catalog is kept as {report.kept} until `sac gc`")
    if report.lost:
        console.error("some text is lost: `sac index` takes it again from the files")
        raise typer.Exit(1)
