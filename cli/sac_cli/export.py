"""`sac export`: the text and metadata of a library."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, LibraryFolder, check_present, local
from sac_cli.shell import command
from sac_rag.errors import ConfigError


@command(
    "export",
    example="""
    sac export > my.jsonl
    sac export --library my.lib --output my.jsonl
    """,
)
def export(
    library: LibraryFolder = DEFAULT_LIBRARY,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="File to write, which must not exist.", metavar="FILE")
    ] = None,
) -> None:
    """Print text and metadata as JSON lines, a document each; of a damaged library what can be read."""
    from sac_rag.library.export import documents
    from sac_rag.library.library import Library

    library = local(library)
    check_present(library)
    with Library.open(library) as opened:
        if opened.notice:
            console.notice(opened.notice)
        try:
            out = open(output, "x", encoding="utf-8") if output else sys.stdout  # noqa: SIM115 (closed below)
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error.strerror}; name a new file") from error
        try:
            for document in documents(opened):
                print(json.dumps(document), file=out)
        finally:
            if output:
                out.close()
