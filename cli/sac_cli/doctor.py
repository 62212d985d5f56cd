"""`sac doctor`: what of this machine and installation bears on answers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import Device, Dtype, Json
from sac_cli.shell import command


@command(
    "doctor",
    example="""
    sac doctor
    sac doctor my.lib                 also the library, and its model by the gate
    sac doctor --json | jq -r '.findings[] | select(.state != "ok")'
    """,
)
def doctor(
    library: Annotated[
        str | None, typer.Argument(help="A library, whose model is loaded and judged.", metavar="LIBRARY")
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Look at versions, processor, threads, devices, cache and network settings, and at a library and its gate.

    Nothing is changed and nothing fetched. Exit code 1 where something will fail.
    """
    with console.working("looking"):
        from sac_rag.doctor import examine

        found = list(examine(library, device=device, dtype=dtype))
    if as_json:
        console.emit({"findings": [dataclasses.asdict(f) for f in found]})
    else:
        console.table(("", "", ""), [(f.state, f.what, f.said) for f in found])
    if any(f.state == "bad" for f in found):
        raise typer.Exit(1)
