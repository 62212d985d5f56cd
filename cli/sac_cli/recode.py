"""`sac recode`: store a library's memories by another codec."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console
from sac_cli.bars import run_bars
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, Wait, check_present
from sac_cli.shell import command


@command(
    "recode",
    example="""
    sac recode transform                    a tenth of bf16, where the adapter has a basis
    sac recode int8 --library my.lib
    """,
)
def recode(
    codec: Annotated[str, typer.Argument(help="bf16, int8, int4 or transform.", metavar="CODEC")],
    library: LibraryFolder = DEFAULT_LIBRARY,
    wait: Wait = 0.0,
    as_json: Json = False,
) -> None:
    """Store all memories of a library by another codec, in one commit. No model is loaded, and nothing compressed anew.

    What a coarser codec left out, a finer one does not bring back. Both versions lie on the disk until it is done.
    """
    check_present(library)
    with console.working("loading"):
        from sac_rag import pipeline
        from sac_rag.library.library import Library
    with Library.open(library) as opened:
        before = opened.stats()
    with run_bars() as bar:
        listen = (lambda done, of: bar("recode", codec, done, of)) if bar else (lambda done, of: None)
        pipeline.recode(library, codec, listen, wait=wait)
    with Library.open(library) as opened:
        after = opened.stats()
    if as_json:
        sizes = {"kv_bytes_before": before.kv_bytes, "kv_bytes_after": after.kv_bytes}
        console.emit({"from": before.codec, "to": after.codec, "passages": after.passages, **sizes})
        return
    console.pairs(
        [
            ("passages", after.passages),
            (before.codec, console.size(before.kv_bytes)),
            (after.codec, console.size(after.kv_bytes)),
        ]
    )
