"""`sac unpack`: a library out of one file."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sac_cli.options import Json
from sac_cli.pack import show
from sac_cli.shell import command


@command(
    "unpack",
    example="""
    sac unpack my.pack my.lib
    sac unpack my.pack my.lib --sha256 "$(cat my.pack.sha256)"
    """,
)
def unpack(
    packed: Annotated[str, typer.Argument(help="File that `sac pack` wrote.", metavar="FILE")],
    folder: Annotated[str, typer.Argument(help="Folder to make, which must not exist.", metavar="FOLDER")],
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="What the file must hash to, as `sac pack` told it.", metavar="HEX")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a library out of a pack, once every byte is checked. The pack may come from anywhere: nothing is written
    outside of the folder, and nothing appears there before all of it is sound."""
    from sac_rag.library import pack as packing

    show(dataclasses.asdict(packing.unpack(packed, folder, sha256=sha256)), as_json)
