"""`sac eval`: score readers on question files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from sac_cli import console
from sac_cli.options import Device, Dtype, Json, numbers, split_commas
from sac_cli.shell import command
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError


@command(
    "eval",
    example="""
    sac eval squad.dev.jsonl.gz --reader memory --ratio 5,15
    sac eval squad.dev.jsonl.gz nq.dev.jsonl.gz --reader closed,text,memory --limit 500 --json
    sac eval dev.jsonl --reader memory --adapter runs/mine
    sac eval dev.jsonl --track retrieved --reader memory,text -k 5 --passage-tokens 128
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
    track: Annotated[
        str, typer.Option(help="gold: the context of each question; retrieved: a library of all.")
    ] = "gold",
    k: Annotated[int, typer.Option("-k", min=1, help="Passages per question (retrieved).")] = 5,
    passage_tokens: Annotated[int, typer.Option(help="Longest passage in tokens (retrieved).")] = 256,
    contexts: Annotated[int | None, typer.Option(min=1, help="Index only the first contexts (retrieved).")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions decoded together.")] = 32,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score readers on files of questions: no context, plain text, compressed memory, finetuned text."""
    ratios, readers = numbers(ratio, "--ratio"), split_commas(reader)
    if track not in ("gold", "retrieved"):
        raise ConfigError(f"track is {track!r}; use gold or retrieved")
    with console.working("loading"):
        from sac_rag.evaluate.harness import ANSWER_TOKENS, evaluate
    if track == "retrieved":
        index = {"model": model, "method": method, "adapter": adapter, "passage_tokens": passage_tokens}
        ask = {"k": k, "max_new_tokens": ANSWER_TOKENS}
        rest = {"limit": limit, "contexts": contexts, "seed": seed, "device": device, "dtype": dtype}
        _show(_retrieved(files, ratios, readers, index, ask, rest), as_json)
        return
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
    _show([dataclasses.asdict(run) for run in runs], as_json)


def _retrieved(
    files: list[str],
    ratios: Sequence[float],
    readers: Sequence[str],
    index: dict[str, Any],
    ask: dict[str, Any],
    rest: dict[str, Any],
) -> list[dict[str, Any]]:
    """One library a file and ratio; plain text reads the same passages at every ratio, so once."""
    from sac_rag.config import AskConfig, IndexConfig
    from sac_rag.evaluate.retrieved import evaluate_retrieved

    runs: list[dict[str, Any]] = []
    for i, ratio in enumerate(ratios):
        wanted = [r for r in readers if r != "text" or not i]
        config = IndexConfig(ratio=ratio, **index)
        with _bar() as listen:
            found = evaluate_retrieved(
                files, config=config, ask=AskConfig(**ask), readers=wanted, listen=listen, **rest
            )
        runs += [dataclasses.asdict(run) for run in found]
    return runs


def _show(runs: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        console.emit({"runs": runs})
        return
    more = [name for name in ("passage_tokens", "k", "passages", "recall") if name in runs[0]]
    console.table(
        ("set", "reader", "method", "ratio", "n", "F1", "EM", "ROUGE-1", "EM raw", "seconds", *more),
        [
            (
                *(r["set"], r["reader"], r["method"], None if r["ratio"] is None else f"{r['ratio']:g}", r["n"]),
                *(f"{100 * r[name]:.2f}" for name in ("f1", "em", "rouge1", "em_raw")),
                f"{r['seconds']:.1f}",
                *(f"{100 * r[name]:.1f}" if name == "recall" else r[name] for name in more),
            )
            for r in runs
        ],
        numbers=("ratio", "n", "F1", "EM", "ROUGE-1", "EM raw", "seconds", *more),
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
