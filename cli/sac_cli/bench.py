"""`sac bench`: what this machine makes of memories, text and others, and what to choose for one's own documents."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_cli.bars import run_bars
from sac_cli.options import Adapter, Device, Dtype, Json, Method, Model, numbers, split_commas
from sac_cli.shell import command
from sac_rag.config import AUTO, DEFAULT_EMBEDDER, DEFAULT_MODEL, IndexConfig, check_k
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag.evaluate.suite import Tables


@command(
    "bench",
    example="""
    sac bench --quick                                 a rehearsal, in a minute or two
    sac bench --json > bench.json                     all of it, on the sample documents
    sac bench --only first,decoding --gguf model.gguf beside llama.cpp
    sac bench --mine handbook/ --plots plots          which ratio, codec and k for one's own documents
    """,
)
def bench(
    files: Annotated[
        list[str] | None, typer.Argument(help="Documents; the sample ones if left out.", metavar="FILE")
    ] = None,
    mine: Annotated[
        bool,
        typer.Option("--mine", help="Choose ratio, codec and k for these documents, by questions made out of them."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A rehearsal: little of each, once.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Parts: first,cold,decoding,serving,indexing,storage.", metavar="PARTS")
    ] = None,
    plots: Annotated[str | None, typer.Option(help="Write pictures (SVG) there.", metavar="DIR")] = None,
    gguf: Annotated[
        str | None, typer.Option(help="The model as .gguf, to have llama.cpp read the same text.", metavar="FILE")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of which medians are taken.")] = 7,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 20,
    questions: Annotated[int, typer.Option(min=4, help="Questions to make out of the documents (--mine).")] = 40,
    ratio: Annotated[list[str], typer.Option(help="Source tokens per anchor.")] = ["2,5,15,51"],  # noqa: B006  read, never changed
    k: Annotated[
        list[str] | None, typer.Option("-k", help="Passages; 1,2,5,10,16, or 1,5,10 of --mine.", metavar="K")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Codecs that --mine compares; bf16 and the adapter's own if left out.", metavar="CODEC"),
    ] = None,
    passage_tokens: Annotated[int, typer.Option(help="Longest passage, in tokens.")] = 256,
    model: Model = DEFAULT_MODEL,
    embedder: Annotated[str, typer.Option(help="Embedder, named likewise.")] = DEFAULT_EMBEDDER,
    method: Method = "sac",
    adapter: Adapter = "default",
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Measure first tokens, whole answers, throughput, indexing and bytes on this machine, each beside its floor.

    All ways take turns in one run, and medians are told. Libraries are made in a temporary folder. A floor is what the
    machine's measured bandwidth and arithmetic allow; the table "machine" names the CPU and whether it has AMX.
    """
    if mine and not files:
        raise ConfigError("--mine is for your own documents: name files or folders")
    if mine and (only or gguf):
        raise ConfigError("--mine measures one table: leave out --only and --gguf")
    if not mine and codec:
        raise ConfigError("--codec is for --mine; the part storage measures all codecs")
    ks = [int(n) for n in numbers(k or ["1,5,10" if mine else "1,2,5,10,16"], "-k")]
    for count in ks:
        check_k(count)
    config = IndexConfig(
        model=model, embedder=embedder, method=method, adapter=adapter, passage_tokens=passage_tokens, codec=AUTO
    )
    with console.working("loading"):
        from sac_rag.evaluate import own, suite
        from sac_rag.evaluate.results import versions
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    ratios = tuple(numbers(ratio, "--ratio"))
    tables: Tables
    with run_bars() as listen:
        if mine:
            codecs = split_commas(codec or [])
            if quick:
                ratios, ks, questions, tokens = ratios[:2], ks[:2], own.FEWEST, 4
            with tempfile.TemporaryDirectory(prefix="sac-bench-") as folder:
                rows = own.choices(
                    files or [], folder, config, ratios=ratios, codecs=codecs, ks=ks, questions=questions,
                    tokens=tokens, listen=listen, **where,
                )  # fmt: skip
            tables = {"choices": rows}
        else:
            parts = tuple(split_commas([only])) if only else suite.PARTS
            plan = suite.Plan(
                config, tuple(files or ()), parts=parts, ratios=ratios, ks=tuple(ks), rounds=rounds, tokens=tokens,
                gguf=gguf,
            )  # fmt: skip
            tables = suite.run(plan.hurried() if quick else plan, listen=listen, **where)
    if plots:
        _draw(plots, suite.pictures(tables))
    if as_json:
        console.emit({"tables": tables, "versions": versions()})
        return
    for name, rows in tables.items():
        console.table(
            ("table", *(column.replace("_", " ") for column in rows[0])),
            [(name, *(v if isinstance(v, str) else f"{v:,.4g}" for v in row.values())) for row in rows],
        )


def _draw(folder: str, pictures: dict[str, str]) -> None:
    """Write pictures; say where."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (Path(folder) / name).write_text(content, "utf-8")
        console.hint(f"drawn: {Path(folder) / name}")
