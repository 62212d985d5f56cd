"""`sac rm`: remove documents from a library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, Wait, matching
from sac_cli.shell import command
from sac_rag.errors import ConfigError


@command(
    "rm",
    example="""
    sac rm handbook/old.md
    sac rm 'drafts/*' --yes --library my.lib
    sac rm handbook/old.md --missing-ok --wait 60   in a script that may run twice
    """,
)
def rm(
    documents: Annotated[
        list[str], typer.Argument(help="Documents as `sac ls` prints them, or patterns.", metavar="DOC")
    ],
    library: LibraryFolder = DEFAULT_LIBRARY,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask when a pattern matches several.")] = False,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Pass over documents that are not there.", show_default=False)
    ] = False,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Remove documents: gone from search and text at once; `sac gc` then gives their bytes back."""
    from sac_rag.library.library import Library

    with Library.open(library, write=True, wait=wait) as opened:
        stored = [d.uri for d in opened.documents()]
        found = [matching(name, stored, library, missing_ok=missing_ok) for name in documents]
        uris = list(dict.fromkeys(uri for uris in found for uri in uris))
        if not yes and any(len(uris) > 1 for uris in found):
            _confirm(uris)
        with opened.transaction() as tx:
            passages = sum(tx.remove_document(uri) for uri in uris)
    if as_json:
        console.emit({"removed": uris, "passages": passages})
        return
    for uri in uris:
        print(console.name(uri))
    console.hint(f"removed {len(uris)} documents, {passages} passages; `sac gc` gives their bytes back")


def _confirm(uris: Sequence[str]) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{len(uris)} documents match; add --yes to remove them all")
    for uri in uris:
        print(console.name(uri), file=sys.stderr)
    print(f"Remove these {len(uris)} documents? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        console.hint("nothing was removed")
        raise typer.Exit(1)
