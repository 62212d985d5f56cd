"""`sac ls`: what is in a library."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.answers import PREVIEW
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, local, matching
from sac_cli.shell import command
from sac_rag.errors import ConfigError


@command(
    "ls",
    example="""
    sac ls
    sac ls handbook/travel.md --library my.lib      its passages
    sac ls --json | jq -r '.documents[].document'
    """,
)
def ls(
    document: Annotated[str | None, typer.Argument(help="A document, to list its passages.", metavar="DOC")] = None,
    library: LibraryFolder = DEFAULT_LIBRARY,
    as_json: Json = False,
) -> None:
    """List the documents of a library, or the passages of a document."""
    from sac_rag.library.library import Library

    with Library.open(local(library)) as opened:
        stored = opened.documents()
        if document is None:
            rows = [
                {"document": d.uri, "type": d.media_type, "passages": d.passages, "tokens": d.source_tokens}
                | ({"stale": d.stale} if d.stale else {})
                for d in stored
            ]
            if as_json:
                console.emit({"documents": rows})
            else:
                heads = ("document", "type", "passages", "tokens")
                cells = [(console.name(d.uri), d.media_type, d.passages, d.source_tokens) for d in stored]
                console.table(heads, cells, numbers=heads[2:])
                for d in stored:
                    if d.stale:
                        name = console.name(d.uri)
                        console.notice(f"{name} is of before: its newer version could not be read ({d.stale})")
            return
        found = matching(document, [d.uri for d in stored], library)
        if len(found) > 1:
            raise ConfigError(f"{document!r} matches {len(found)} documents; name one of them")
        passages = opened.passages(found[0])
    if as_json:
        keys = ("id", "ordinal", "start", "end", "tokens", "heading", "text")
        console.emit({"document": found[0], "passages": [{k: getattr(p, k) for k in keys} for p in passages]})
        return
    console.table(
        ("n", "span", "tokens", "heading", "text"),
        [(p.ordinal, f"{p.start}-{p.end}", p.tokens, p.heading, console.one_line(p.text, PREVIEW)) for p in passages],
        numbers=("n", "tokens"),
    )
