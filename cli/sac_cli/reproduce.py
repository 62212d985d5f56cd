"""`sac reproduce`: the paper's tables and figures, made again."""

from __future__ import annotations

from typing import Annotated

import typer

from sac_cli import console, interrupts
from sac_cli.bars import run_bars
from sac_cli.options import Batch, Device, Dtype, Json, split_commas
from sac_cli.shell import command


@command(
    "reproduce",
    example="""
    sac reproduce --scale tiny --output rehearsal
    sac reproduce --scale tiny --only table12,table13 --output rehearsal
    sac reproduce --scale small --data data/ --output reproduced
    sac reproduce --scale small --data data/ --systems sac,epl,full-ft --only table1 --output reproduced
    sac reproduce --scale small --data data/ --only table3,figure9 --output reproduced --json
    """,
)
def reproduce(
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of runs and pages; what is there is not run again.")
    ],
    scale: Annotated[
        str,
        typer.Option(
            help="tiny (random model: a rehearsal), small (the default model) or paper (its model, on a GPU)."
        ),
    ] = "small",
    data: Annotated[
        str | None, typer.Option(help="Folder with lm/, qa/ and summ/; tiny makes its own.", metavar="DIR")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Experiments, or the paper's tables and figures (table3, figure9); all if left out. Repeat or "
            "separate with commas."
        ),
    ] = None,
    systems: Annotated[
        list[str] | None,
        typer.Option(help="Systems that take part, such as sac,epl,full-ft; all if left out."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Updates of finetuning in place of the scale's, other stages in proportion."),
    ] = None,
    faithful: Annotated[
        bool,
        typer.Option(
            "--faithful",
            help="With the published code's anchors at a stride, a row of embeddings each, [LM], header, prompt and "
            "LoRA of rank 128 on queries and values.",
        ),
    ] = False,
    batch: Batch = 32,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Run the experiments of the SAC paper on this machine and set what they give beside its figures.

    Every system is trained with equal steps on equal data and read by the same frozen model. Each run, a stage of
    training, a reader on a set, a measurement, is one JSON file in OUTPUT/runs that experiments share; each experiment
    is a Markdown page. Whether systems stand in the paper's order is told pair by pair, with intervals. Methods that
    are not registered are named and left out.

    Ctrl-C stops after the step that is under way, and the same command goes on from there. A run that fails is told,
    the others go on, and it is tried again the next time.
    """
    names = split_commas(only) if only else None
    with console.working("loading"):
        from sac_rag.reproduce.runner import reproduce as run
    with interrupts.after_step() as asked, run_bars() as show:

        def listen(label: str, done: int, total: int) -> None:
            asked.begun = True
            if show:
                show(label, "", done, total)

        made = run(
            scale,
            output,
            data=data,
            only=names,
            systems=split_commas(systems) if systems else None,
            steps=steps,
            faithful=faithful,
            device=device,
            dtype=dtype,
            batch=batch,
            listen=listen,
            stop=lambda: asked.stop,
        )
    for notice in made.notices:
        console.notice(notice)
    for label, why in made.failed.items():
        console.error(f"{label}: {why}")
    if as_json:
        console.emit(
            {
                "pages": {name: str(path) for name, path in made.pages.items()},
                "tables": made.tables,
                **{"computed": made.computed, "taken": made.taken, "failed": made.failed, "whole": made.whole},
            }
        )
    else:
        counts = f"{made.computed} computed, {made.taken} found, {len(made.failed)} failed"
        console.pairs([("runs", counts), *made.pages.items()])
    if not made.whole:
        console.error(f"stopped: what is done is in {output}, the same command goes on")
        raise typer.Exit(130)
    if made.failed:
        raise typer.Exit(1)
