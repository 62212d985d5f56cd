"""`sac ls`: what is in a library, or in several."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_cli.answers import PREVIEW
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolders, local, matching
from sac_cli.shell import command
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag.library.library import Library


@command(
    "ls",
    example="""
    sac ls
    sac ls handbook/travel.md --library my.lib      its passages
    sac ls --library sales.lib,legal.lib            the documents of both
    sac ls --json | jq -r '.documents[].document'
    """,
)
def ls(
    document: Annotated[
        list[str] | None, typer.Argument(help="A document, to list its passages.", metavar="DOC")
    ] = None,
    library: LibraryFolders = DEFAULT_LIBRARY,
    as_json: Json = False,
) -> None:
    """List the documents of a library, or of several with the library of each; or the passages of a document."""
    from sac_rag.library.library import Library
    from sac_rag.places import places_of

    wanted = _document(document or [])
    with ExitStack() as stack:
        places = places_of(library)
        several = len(places) > 1
        opened = {place: stack.enter_context(Library.open(local(place))) for place in places}
        if wanted is None:
            _documents(opened, several=several, as_json=as_json)
        else:
            _passages(opened, wanted, library, several=several, as_json=as_json)


def _document(given: list[str]) -> str | None:
    """The document that is named; ConfigError for several, and for a library in its place."""
    libraries = [name for name in given if os.path.lexists(os.path.join(name, "catalog.sqlite"))]
    if libraries:
        flag = f"--library {','.join(libraries)}"
        raise ConfigError(f"{libraries[0]} is a library, where a document was expected: write `sac ls {flag}`")
    if len(given) > 1:
        raise ConfigError(f"{len(given)} documents are named; `sac ls` shows one, or all without a name")
    return given[0] if given else None


def _documents(opened: dict[str, Library], *, several: bool, as_json: bool) -> None:
    found = [(place, d) for place, library in opened.items() for d in library.documents()]
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                **({"library": place} if several else {}),
                **{"document": d.uri, "type": d.media_type, "passages": d.passages, "tokens": d.source_tokens},
                **({"stale": d.stale} if d.stale else {}),
            }
            for place, d in found
        ]
        console.emit({"documents": rows})
        return
    heads = ("library",) * several + ("document", "type", "passages", "tokens")
    cells = [
        (*(place,) * several, console.name(d.uri), d.media_type, d.passages, d.source_tokens) for place, d in found
    ]
    console.table(heads, cells, numbers=("passages", "tokens"), cut="type")
    for _, d in found:
        if d.stale:
            console.notice(f"{console.name(d.uri)} is of before: its newer version could not be read ({d.stale})")


def _passages(opened: dict[str, Library], wanted: str, library: str, *, several: bool, as_json: bool) -> None:
    uris = {place: [d.uri for d in one.documents()] for place, one in opened.items()}
    found = matching(wanted, list(dict.fromkeys(uri for held in uris.values() for uri in held)), library)
    if len(found) > 1:
        raise ConfigError(f"{wanted!r} matches {len(found)} documents; name one of them")
    (uri,) = found
    passages = [(place, p) for place, one in opened.items() if uri in uris[place] for p in one.passages(uri)]
    if as_json:
        keys = ("id", "ordinal", "start", "end", "tokens", "heading", "text")
        rows = [
            {**({"library": place} if several else {}), **{k: getattr(p, k) for k in keys}} for place, p in passages
        ]
        console.emit({"document": uri, "passages": rows})
        return
    console.table(
        ("library",) * several + ("n", "span", "tokens", "heading", "text"),
        [
            (
                *(place,) * several,
                *(p.ordinal, f"{p.start}-{p.end}", p.tokens, p.heading, console.one_line(p.text, PREVIEW)),
            )
            for place, p in passages
        ],
        numbers=("n", "tokens"),
        cut="text",
    )
