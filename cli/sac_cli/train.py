"""`sac train`: make an adapter."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console, fields, interrupts
from sac_cli.options import Device, Dtype
from sac_cli.shell import command
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag.train.loop import Progress

TRAINING = fields.settings_of("sac_rag.train.loop:TrainConfig", panel="Training")
LORA = fields.settings_of("sac_rag.compress.backbone:LoraSpec", prefix="lora_", panel="LoRA (fixed by --from)")
LAYOUT = fields.settings_of(
    "sac_rag.compress.layout:PromptLayout", prefix="layout_", panel="Prompt layout (fixed by --from)"
)


@command(
    "train",
    settings=(*TRAINING, *LORA, *LAYOUT),
    example="""
    sac train books.txt --objective lm --steps 2000 --output runs/lm
    sac train squad.jsonl.gz=0.7 nq.jsonl.gz=0.3 --from runs/lm --output runs/qa
    sac train squad.jsonl.gz --base meta-llama/Llama-3.2-1B --lora-rank 64 --output runs/1b
    sac index docs/ --adapter runs/qa                     use what was trained
    """,
)
def train(
    data: Annotated[
        list[str], typer.Argument(help="Files of text or questions, with a share if wanted.", metavar="PATH[=WEIGHT]")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of the adapter; a stopped run there goes on.", metavar="DIR")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a name, a hub id, a folder a .gguf file; else that of --from, or the default."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Compression method; else the one of --from, or sac.")] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Adapter folder to start from.", metavar="ADAPTER")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Keyword of the method, such as selector=random.", metavar="KEY=VALUE")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence line of the adapter's card.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON at the end.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Train an adapter: pretraining on text (lm) or finetuning on questions (qa).

    The same command resumes a stopped run exactly. Ctrl-C saves a checkpoint and ends, a second one kills. Losses of
    every step go to metrics.jsonl in the output folder.
    """
    lora, layout = fields.given(LORA, values), fields.given(LAYOUT, values)
    options = _options(option or ())
    with console.working("loading"):
        from sac_rag.compress.backbone import LoraSpec
        from sac_rag.compress.layout import PromptLayout
        from sac_rag.train.loop import TrainConfig
        from sac_rag.train.run import run
    config = TrainConfig(**fields.given(TRAINING, values))
    with interrupts.after_step() as asked, _bar() as show:

        def listen(progress: Progress) -> None:
            asked.begun, asked.step = True, progress.step
            show(progress)

        card = run(
            data,
            output,
            config,
            base=base,
            method=method,
            options=options,
            lora=LoraSpec(**lora) if lora else None,
            layout=PromptLayout(**layout) if layout else None,
            start_from=start_from,
            licence=licence,
            device=device,
            dtype=dtype,
            listen=listen,
            stop=lambda: asked.stop,
        )
    if as_json:
        console.emit(dataclasses.asdict(card))
    elif not asked.stop:
        stage = card.training["stages"][-1]
        rows = ("objective", "steps_done", "examples", "hours", "final_loss")
        console.pairs([("adapter", output), *((name.replace("_", " "), stage[name]) for name in rows)])
    if asked.stop and asked.step < config.steps:
        console.error(f"stopped at step {asked.step} of {config.steps}: saved in {output}, the same command goes on")
        raise typer.Exit(130)


def _options(given: list[str] | tuple[()]) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--option is {item!r}; write key=value, such as selector=random")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found or None


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    if not console.shows_progress():
        yield lambda progress: None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("training"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.1f} examples/s  left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console.err()) as bar:
        task = bar.add_task("", total=None, loss=float("nan"), speed=0.0)

        def show(p: Progress) -> None:
            bar.update(task, total=p.steps, completed=p.step, loss=p.loss, speed=p.per_second)

        yield show
