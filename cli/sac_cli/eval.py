"""`sac eval`: score readers on question files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from sac_cli import console
from sac_cli.options import Device, Dtype, Json, numbers, split_commas
from sac_cli.shell import command
from sac_rag.config import DEFAULT_MODEL


@command(
    "eval",
    example="""
    sac eval squad.dev.jsonl.gz --reader memory --ratio 5,15
    sac eval squad.dev.jsonl.gz nq.dev.jsonl.gz --reader closed,text,memory --limit 500 --json
    sac eval dev.jsonl --reader memory --adapter runs/mine
    """,
)
def eval_(
    files: Annotated[
        list[str], typer.Argument(help="Questions with contexts: .jsonl, SQuAD .json, or .gz.", metavar="FILE")
    ],
    reader: Annotated[
        list[str], typer.Option(help="closed, text, memory or full-ft; repeat or separate with commas.")
    ] = ["memory"],  # noqa: B006  read, never changed
    model: Annotated[str, typer.Option(help="Base model: a name, a hub id, a folder or a .gguf file.")] = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="Compression method of the memory reader.")] = "sac",
    adapter: Annotated[str, typer.Option(help='Its adapter: a folder, or "default".')] = "default",
    full_ft_adapter: Annotated[str, typer.Option(help="Adapter of the full-ft reader.")] = "default",
    ratio: Annotated[list[str], typer.Option(help="Source tokens per anchor; repeat or separate with commas.")] = ["5"],  # noqa: B006  read, never changed
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each file, drawn at random; all if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that draw.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Questions decoded together.")] = 32,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score readers on files of questions: no context, plain text, compressed memory, finetuned text."""
    ratios, readers = numbers(ratio, "--ratio"), split_commas(reader)
    with console.working("loading"):
        from sac_rag.evaluate.harness import evaluate
    with _bar() as listen:
        runs = evaluate(
            files,
            readers=readers,
            model=model,
            method=method,
            adapter=adapter,
            full_ft_adapter=full_ft_adapter,
            ratios=ratios,
            limit=limit,
            seed=seed,
            batch=batch,
            device=device,
            dtype=dtype,
            listen=listen,
        )
    if as_json:
        console.emit({"runs": [dataclasses.asdict(run) for run in runs]})
        return
    console.table(
        ("set", "reader", "method", "ratio", "n", "F1", "EM", "ROUGE-1", "EM raw", "seconds"),
        [
            (
                *(r.set, r.reader, r.method, None if r.ratio is None else f"{r.ratio:g}", r.n),
                *(f"{100 * v:.2f}" for v in (r.f1, r.em, r.rouge1, r.em_raw)),
                f"{r.seconds:.1f}",
            )
            for r in runs
        ],
        numbers=("ratio", "n", "F1", "EM", "ROUGE-1", "EM raw", "seconds"),
    )


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, str, int, int], None] | None]:
    if not console.shows_progress():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console.err(), transient=True) as bar:
        tasks = {}

        def listen(name: str, reader: str, done: int, total: int) -> None:
            if (name, reader) not in tasks:
                tasks[name, reader] = bar.add_task(f"{name} {reader}", total=total)
            bar.update(tasks[name, reader], completed=done)

        yield listen
