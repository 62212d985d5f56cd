"""`sac warm`: a process that keeps a library and its model loaded, for `sac ask`."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, LibraryFolders, check_present, local
from sac_cli.shell import command


@command(
    "warm",
    example="""
    sac warm my.lib
    sac warm my.lib --idle 60                      ends when nobody has asked for an hour
    sac warm my.lib --stop
    sac warm sales.lib,legal.lib                   several libraries, read as one
    sac ask "Who signs?" --library my.lib -v       says who answered
    """,
)
def warm(
    folder: Annotated[
        str | None, typer.Argument(help="The library, or several with commas.", metavar="LIBRARY")
    ] = None,
    library: LibraryFolders = DEFAULT_LIBRARY,
    idle: Annotated[
        float, typer.Option("--idle", min=0.01, help="Minutes without a question after which it ends.", metavar="MIN")
    ] = 15.0,
    stop: Annotated[bool, typer.Option("--stop", help="End the one that runs; kill it if it hangs.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Keep a library and its model loaded: `sac ask` with the same settings then answers without loading them.

    The process stays behind when the command returns, and ends by itself when it has been idle. Only you can ask it:
    its socket lies in a folder of your own. `sac ask` reads the library's newest state through it, and answers by
    itself where it cannot. Linux only.
    """
    from sac_rag.warm import client

    place = local(folder or library)
    if stop:
        done = {
            "none": f"no warm process serves {place}",
            "ended": f"the warm process of {place} has ended",
            "killed": f"the warm process of {place} hung, and was killed",
        }
        console.hint(done[client.stop(place, device, dtype)])
        return
    check_present(place)
    with console.working("loading the model"):
        pid = client.start(place, device, dtype, 60 * idle)
    console.hint(f"process {pid} answers from {place}, until nobody has asked for {idle:g} minutes")
