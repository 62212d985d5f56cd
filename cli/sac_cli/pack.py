"""`sac pack`: a library as one file."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, Wait
from sac_cli.shell import command


@command(
    "pack",
    example="""
    sac pack my.pack
    sac pack my.pack --library my.lib --json | jq -r .sha256
    """,
)
def pack(
    output: Annotated[str, typer.Argument(help="File to write, which must not exist.", metavar="FILE")],
    library: LibraryFolder = DEFAULT_LIBRARY,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Write a library into one file with what it was made with and its SHA-256: one machine compresses for many.

    The file holds the text as well as the memories: treat it as you would treat the documents.
    """
    from sac_rag.library import pack as packing

    show(dataclasses.asdict(packing.pack(library, output, wait=wait)), as_json)


def show(about: dict[str, object], as_json: bool) -> None:
    """What a pack holds; but for the library's own name, by which its tags are signed."""
    about.pop("library")
    if as_json:
        console.emit(about)
        return
    fingerprint = about.pop("fingerprint")
    assert isinstance(fingerprint, dict)
    made = [(name, fingerprint[name]) for name in ("model", "method", "ratio", "embedder") if name in fingerprint]
    console.pairs([*about.items(), *made])
