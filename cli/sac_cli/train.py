"""`sac train`: make an adapter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console, fields, interrupts
from sac_cli.options import Device, Dtype
from sac_cli.shell import command
from sac_rag.config import options_of
from sac_rag.errors import ConfigError
from sac_rag.train import launch

if TYPE_CHECKING:
    from sac_rag.compress.adapter import Card
    from sac_rag.train.loop import Progress
    from sac_rag.train.recipes import Stage

RECIPE = "Recipe"
OF_READING = "Training behind memories (all but --objective salience)"
OF_QUESTIONS = "Training on questions (--objective qa, summarise, budget or reader)"
OF_READER = "Training a reader adapter (--objective reader)"
OF_TEXTS = "Training on texts (--objective ae+lm)"
TRAINING = fields.settings_of("sac_rag.train.config:TrainConfig", panel="Training")
OWN = (
    *fields.settings_of("sac_rag.train.objectives.base:ReadingSettings", panel=OF_READING),
    *fields.settings_of("sac_rag.train.objectives.questions:QuestionSettings", panel=OF_QUESTIONS),
    *fields.settings_of("sac_rag.train.objectives.reading:ReaderSettings", panel=OF_READER),
    *fields.settings_of("sac_rag.train.objectives.texts:BothSettings", panel=OF_TEXTS),
)
"""What some objectives alone read."""
LORA = fields.settings_of("sac_rag.compress.backbone:LoraSpec", prefix="lora_", panel="LoRA (fixed by --from)")
LAYOUT = tuple(
    dataclasses.replace(setting, default=None)  # it follows from the model
    for setting in fields.settings_of(
        "sac_rag.compress.layout:PromptLayout",
        prefix="layout_",
        panel="Prompt layout (else by the model's chat template; fixed by --from)",
    )
)


PLACING = tuple(
    dataclasses.replace(setting, default=None)
    for setting in fields.settings_of(
        "sac_rag.compress.placing:Placing", prefix="placing_", panel="Placing of several passages (else that of --from)"
    )
)


@command(
    "train",
    settings=(*TRAINING, *OWN, *LORA, *LAYOUT, *PLACING),
    example="""
    sac train books.txt --objective lm --steps 2000 --output runs/lm
    sac train squad.jsonl.gz=0.7 nq.jsonl.gz=0.3 --from runs/lm --output runs/qa
    sac train squad.jsonl.gz=0.7 cloze:books.txt=0.3 --output runs/qa
    sac train squad.jsonl.gz --base meta-llama/Llama-3.2-1B --lora-rank 64 --output runs/1b
    sac train squad.jsonl.gz --from runs/lm --teacher runs/full-ft --distil-weight 0.5 --output runs/taught
    sac train --recipe default data/ --output runs/default
    sac index docs/ --adapter runs/qa                     use what was trained
    """,
)
def train(
    data: Annotated[
        list[str],
        typer.Argument(
            help="Files of text or questions, with a share if wanted; ask:PATH gives an answer and wants its question, "
            "choice:PATH offers two answers with half of its questions, cloze:PATH asks questions made out of its "
            "texts, quote:PATH for the texts themselves. One folder with --recipe.",
            metavar="PATH[=WEIGHT]",
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Folder of the adapter; a stopped run there goes on.", metavar="DIR")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: a name, a hub id, a folder or a .gguf file; else that of --from, or the default."
        ),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Compression method; else the one of --from, or sac.")] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Adapter folder to start from.", metavar="ADAPTER")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Full-FT adapter to learn from as well, with --distil-weight.", metavar="ADAPTER"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="All stages of a known training, over one folder of data: default, large, full-ft, tiny, "
            "ablation-base, ablation-lm, ablation-quote, ablation-causal, ablation-future, "
            "ablation-no-anchor-embedding, ablation-random, ablation-salient, ablation-budget; rival-METHOD (methods "
            "at equal steps); paper-METHOD, paper-METHOD-15x, paper-METHOD-51x (the paper's settings); or a file.toml.",
            rich_help_panel=RECIPE,
        ),
    ] = None,
    steps_scale: Annotated[
        float | None, typer.Option(help="Factor on the steps of every stage, such as 0.02.", rich_help_panel=RECIPE)
    ] = None,
    micro_tokens: Annotated[
        int | None,
        typer.Option(min=64, help="Tokens of a micro-batch; large ones suit a large GPU.", rich_help_panel=RECIPE),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="Keyword of the method, such as selector=random; else those of --from.", metavar="KEY=VALUE"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence line of the adapter's card.")] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Processes of one thread each that share out the micro-batches of a step; one a physical core on a "
            "CPU if there are so many micro-batches, one on a GPU.",
            show_default=False,
            rich_help_panel="Computing",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON at the end.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Train an adapter: pretraining on text (lm, ae, ae+lm) or finetuning on questions (qa) and summaries (summarise).

    Data are MRQA-style lines, SQuAD JSON, documents with summaries, or text; lm, ae and ae+lm read their text alone.
    cloze: in front of a path makes questions out of any English text, new ones in each epoch: a sentence asks for a
    name, a number or a phrase that was taken out of it. choice: asks the file's own questions, about half of them with
    the answer and another span of its kind offered: "…, 1901 or 1887?". quote: asks for the text itself, in pieces.
    ask: turns the file's questions round: 'Ask a question that is answered by "1901".'

    --recipe trains all stages of a known training in folders 1-… and 2-… of the output, which gets the last adapter;
    the data are then one folder with lm/, qa/ and summ/ in it.

    The same command resumes a stopped run exactly, also with another number of --processes. Ctrl-C saves a checkpoint
    and ends, a second one kills. The smoothed losses of every step go to metrics.jsonl in the output folder.
    """
    if recipe is not None:
        fixed = {"method": method, "from": start_from, "teacher": teacher, "option": option, **values}
        _refuse(recipe, data, [name for name, value in fixed.items() if value is not None])
        _follow(recipe, data[0], output, steps_scale, micro_tokens, as_json, base, licence, device, dtype, processes)
        return
    if steps_scale is not None or micro_tokens is not None:
        raise ConfigError("--steps-scale and --micro-tokens are for --recipe; use --steps and --step-tokens")
    lora, layout, placing = (fields.given(group, values) for group in (LORA, LAYOUT, PLACING))
    options = options_of(option or ()) or None
    with console.working("loading"):
        from sac_rag.compress.backbone import LoraSpec
        from sac_rag.train.objectives import configured, fields_of
        from sac_rag.train.run import run

        given = fields.given((*TRAINING, *OWN), values)
        objective = given.pop("objective", "qa")
        if unread := [name for name in given if name not in fields_of(objective)]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unread)
            if launch.leads():
                console.notice(f"--objective {objective} does not read {flags}")
            given = {name: value for name, value in given.items() if name not in unread}
        config = configured(objective, **given)
        count = launch.processes_for(processes, config.accumulate, device)
    with interrupts.after_step() as asked, _bar() as show:

        def listen(progress: Progress) -> None:
            asked.begun, asked.step = True, progress.step
            show(progress)

        card = launch.together(
            run,
            count,
            data,
            output,
            config,
            base=base,
            method=method,
            options=options,
            lora=LoraSpec(**lora) if lora else None,
            layout=layout or None,
            placing=placing or None,
            start_from=start_from,
            teacher=teacher,
            licence=licence,
            device=device,
            dtype=dtype,
            listen=listen,
            stop=lambda: asked.stop,
        )
    stopped = asked.stop and asked.step < config.steps
    _show(card, output, as_json, f"{asked.step} of {config.steps}" if stopped else None)


def _show(card: Card, output: str, as_json: bool, stopped_at: str | None) -> None:
    """The card, or its last stage in short, said once for all processes; code 130 where training was stopped."""
    if not launch.leads():
        return
    if as_json:
        console.emit(dataclasses.asdict(card))
    elif stopped_at is None:
        stage = card.training["stages"][-1]
        rows = ("objective", "steps_done", "examples", "hours", "final_loss")
        console.pairs([("adapter", output), *((name.replace("_", " "), stage[name]) for name in rows)])
    if stopped_at is not None:
        console.error(f"stopped at step {stopped_at}: saved in {output}, the same command goes on")
        raise typer.Exit(130)


def _refuse(recipe: str, data: list[str], given: list[str]) -> None:
    """Raises ConfigError for what a recipe says itself."""
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"--recipe {recipe} says itself what {flags} would: leave it out, or train without --recipe")
    if len(data) != 1:
        raise ConfigError(f"--recipe {recipe} takes one folder of data, got {len(data)}: {', '.join(data)}")


def _follow(
    name: str,
    data: str,
    output: str,
    scale: float | None,
    micro_tokens: int | None,
    as_json: bool,
    base: str | None,
    licence: str | None,
    device: str,
    dtype: str,
    processes: int | None,
) -> None:
    with console.working("loading"):
        from sac_rag.train.recipes import find_recipe
        from sac_rag.train.stages import follow

        recipe = find_recipe(name)
        recipe = recipe if scale is None else recipe.scaled(scale)
        recipe = recipe if micro_tokens is None else recipe.regrouped(micro_tokens)
        count = launch.processes_for(processes, min(s.config.accumulate for s in recipe.stages), device)
    if launch.leads():
        console.notice(f"recipe {name}: {recipe.about}")
    at = ""
    with interrupts.after_step() as asked, _bar() as show:

        def listen(stage: Stage, progress: Progress) -> None:
            nonlocal at
            asked.begun, asked.step = True, progress.step
            at = f"{progress.step} of {progress.steps} of stage {stage.name}"
            show(progress)

        done = launch.together(
            follow,
            count,
            recipe,
            data,
            output,
            base=base,
            licence=licence,
            device=device,
            dtype=dtype,
            listen=listen,
            stop=lambda: asked.stop,
        )
    _show(done.card, output, as_json, None if done.whole else at)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    if not console.shows_progress() or not launch.leads():
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
