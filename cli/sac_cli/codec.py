"""`sac codec`: fit what the transform codec needs of an adapter."""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.bars import run_bars
from sac_cli.options import Adapter, Device, Dtype, Json, Method, Model, Ratios, numbers
from sac_cli.shell import command
from sac_rag.config import DEFAULT_MODEL


@command(
    "codec",
    example="""
    sac codec squad.train.jsonl.gz books.txt                            what each codec takes and loses
    sac codec squad.train.jsonl.gz --adapter runs/mine --write          and store the basis beside the adapter
    """,
)
def codec(
    files: Annotated[list[str], typer.Argument(help="Text or questions, as sac train reads them.", metavar="FILE")],
    write: Annotated[bool, typer.Option("--write", help="Store the basis in the adapter's folder.")] = False,
    model: Model = DEFAULT_MODEL,
    method: Method = "sac",
    adapter: Adapter = "default",
    ratio: Ratios = ["2,5,15,51"],  # noqa: B006  read, never changed
    passages: Annotated[int, typer.Option(min=1, help="Passages to compress, for all ratios together.")] = 800,
    step: Annotated[
        float, typer.Option(min=0.01, help="Quantisation step, in standard deviations of keys and values.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the draw of passages.")] = 0,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit the basis of the codec "transform": in which axes an adapter's keys and values are stored, and how finely.

    It is fitted once per adapter, on any text like that to be indexed, and kept beside the adapter; a library that is
    made with it takes a copy along. What each codec takes and loses is measured on passages kept from the fit.
    """
    with console.working("loading"):
        from sac_rag.evaluate import coding
        from sac_rag.models.adapters import find_adapter
    folder = find_adapter(model, method, adapter)
    with run_bars() as bar:
        found = coding.fit(
            files,
            model=model,
            method=method,
            adapter=adapter,
            ratios=numbers(ratio, "--ratio"),
            passages=passages,
            step=step,
            seed=seed,
            device=device,
            dtype=dtype,
            listen=None if bar is None else functools.partial(bar, "codec"),
        )
    path = coding.store(folder, found.basis) if write else None
    rows = [dataclasses.asdict(row) for row in found.rows]
    if as_json:
        console.emit({"codecs": rows, "written": path and path.name})
        return
    console.table(
        ("codec", "ratio", "bytes a source token", "error of keys", "of values"),
        [
            (
                r["codec"],
                f"{r['ratio']:g}",
                f"{r['bytes_per_source_token']:,.0f}",
                f"{r['key_error']:.3f}",
                f"{r['value_error']:.3f}",
            )
            for r in rows
        ],
    )
    if path:
        console.hint(f"written into {path}")
