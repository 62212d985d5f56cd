"""`sac eval`: score readers on question files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_cli.bars import run_bars
from sac_cli.options import Batch, Device, Dtype, Json, KeptRuns, Limit, Model, Ratios, numbers, split_commas
from sac_cli.shell import command
from sac_rag.config import DEFAULT_EMBEDDER, DEFAULT_MODEL, AskConfig, IndexConfig
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag.evaluate.runs import Run

RETRIEVED = "Retrieved track"
SHARED = {"k": "-k", "passage_tokens": "--passage-tokens", "embedder": "--embedder"}
"""Flags of the retrieved track that other commands have as well: the gold track passes over those that are set for all
of them, in sac.toml or the environment."""


@command(
    "eval",
    example="""
    sac eval squad.dev.jsonl.gz --reader memory --ratio 5,15
    sac eval squad.dev.jsonl.gz nq.dev.jsonl.gz --reader closed,text,memory --limit 500 --json
    sac eval dev.jsonl --reader memory --adapter runs/mine
    sac eval dev.jsonl --adapter runs/mine --adapter causal=runs/ablation-causal --ratio 5
    sac eval dev.jsonl --method kvzip,attention-matching,full-kv,sac --reader text,memory --ratio 2,3,5
    sac eval --sets in-domain,out-of-domain --data qa --reader memory,full-ft --full-ft-adapter runs/full --results kept
    sac eval a.jsonl b.jsonl --track retrieved --pool --reader memory,text -k 5 --passage-tokens 128
    """,
)
def eval_(
    ctx: typer.Context,
    files: Annotated[
        list[str] | None, typer.Argument(help="Questions with contexts: .jsonl, SQuAD .json, or .gz.", metavar="[FILE]")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(help="Named groups in place of files: in-domain, out-of-domain; repeat or separate with commas."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder of the groups' files.", metavar="DIR")] = None,
    reader: Annotated[
        list[str],
        typer.Option(help="closed (gold), text, memory, mixed (retrieved), full-ft or words (gold); repeat or commas."),
    ] = ["memory"],  # noqa: B006  read, never changed
    model: Model = DEFAULT_MODEL,
    method: Annotated[
        list[str],
        typer.Option(help="Compression method of the memory reader; several (gold): repeat or separate with commas."),
    ] = ["sac"],  # noqa: B006  read, never changed
    option: Annotated[
        list[str] | None,
        typer.Option(help="Keyword of the method, such as even_heads=true of kvzip.", metavar="KEY=VALUE"),
    ] = None,
    adapter: Annotated[
        list[str],
        typer.Option(
            help='Its adapter: a folder, "default", or "none" (untrained). Several are compared with the first (gold): '
            "repeat or separate with commas, named after their folders unless a name stands in front.",
            metavar="[NAME=]DIR",
        ),
    ] = ["default"],  # noqa: B006  read, never changed
    full_ft_adapter: Annotated[str, typer.Option(help="Adapter of the full-ft reader.")] = "default",
    ratio: Ratios = ["5"],  # noqa: B006  read, never changed
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Prompts to send (gold): qa, chat, system, langchain, llama-index, sentence; else its own."),
    ] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw of questions.")] = 0,
    batch: Batch = 32,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that score runs side by side (gold), on one thread each and each with a model in its own "
            "memory; if left out, as many as cores and memory allow on a CPU, one on a GPU.",
            rich_help_panel="Computing",
        ),
    ] = None,
    results: KeptRuns = None,
    track: Annotated[
        str, typer.Option(help="gold: the context of each question; retrieved: a library of all.")
    ] = "gold",
    k: Annotated[int, typer.Option("-k", min=1, help="Passages per question.", rich_help_panel=RETRIEVED)] = 5,
    passage_tokens: Annotated[int, typer.Option(help="Longest passage in tokens.", rich_help_panel=RETRIEVED)] = 256,
    contexts: Annotated[
        int | None, typer.Option(min=1, help="Index only the first contexts of a file.", rich_help_panel=RETRIEVED)
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="One library of all files, not one a file.", rich_help_panel=RETRIEVED)
    ] = False,
    embedder: Annotated[
        str, typer.Option(help="Embedding model that finds passages.", rich_help_panel=RETRIEVED)
    ] = DEFAULT_EMBEDDER,
    order: Annotated[
        str | None,
        typer.Option(
            help="Order of passages: best-last or best-first; else that of the adapter.", rich_help_panel=RETRIEVED
        ),
    ] = None,
    prior: Annotated[
        float | None,
        typer.Option(
            help="What is subtracted from the attention scores of a passage, times its rank; else that of the adapter.",
            rich_help_panel=RETRIEVED,
        ),
    ] = None,
    libraries: Annotated[
        str | None,
        typer.Option(help="Keep the libraries there for the next run.", metavar="DIR", rich_help_panel=RETRIEVED),
    ] = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Score readers on files of questions: no context, plain text, compressed memory, finetuned text.

    Scores come with 95 % intervals (bootstrap over questions). Several files are followed by their average, "macro",
    and each of several groups by its own. With full-ft among the readers each F1 is also given as a share of it, and
    of several adapters each one's difference to the first, with the interval of the paired difference. With text among
    them it is given as a share of the frozen model's on the text, too. On a terminal sets against readers follow at the
    end.
    """
    ratios, readers, methods = numbers(ratio, "--ratio"), split_commas(reader), split_commas(method)
    if len(methods) != 1 and track == "retrieved":
        raise ConfigError(f"{len(methods)} methods are for --track gold; a library is made with one")
    if track not in ("gold", "retrieved"):
        raise ConfigError(f"track is {track!r}; use gold or retrieved")
    if track == "gold":
        searching = {flag: _written(ctx, name) for name, flag in SHARED.items()}
        searching |= {"--contexts": contexts is not None, "--pool": pool, "--libraries": libraries is not None}
        searching |= {"--order": order is not None, "--prior": prior is not None}
        if given := [flag for flag, is_given in searching.items() if is_given]:
            raise ConfigError(f"gold contexts are not searched: leave out {', '.join(given)}, or use --track retrieved")
    if prompt and track == "retrieved":
        raise ConfigError("--prompt is for --track gold; retrieved passages are read in the adapter's own layout")
    adapters = _adapters(adapter)
    if len(adapters) > 1 and track == "retrieved":
        raise ConfigError(f"{len(adapters)} adapters are for --track gold; a library is made with one")
    if workers not in (None, 1) and track == "retrieved":
        raise ConfigError(f"--workers {workers} is for --track gold; the retrieved track is scored in one process")
    paths = _paths(files or [], split_commas(sets or []), data)
    alone = next(iter(adapters.values()))
    with console.working("loading"):
        from sac_rag.evaluate.harness import evaluate
        from sac_rag.evaluate.prompts import ANSWER_TOKENS
        from sac_rag.evaluate.readers import reader_of
        from sac_rag.evaluate.results import Results, fingerprints, versions
        from sac_rag.evaluate.retrieved import evaluate_retrieved
    stored = Results(results) if results else None
    same: dict[str, Any] = {
        **{"readers": readers, "ratios": ratios, "full_ft_adapter": full_ft_adapter, "limit": limit, "seed": seed},
        **{"batch": batch, "device": device, "dtype": dtype, "results": stored},
    }
    runs: Sequence[Run]
    with run_bars() as listen:
        if track == "retrieved":
            config = IndexConfig(
                model=model, embedder=embedder, method=methods[0], option=tuple(option or ()), adapter=alone,
                passage_tokens=passage_tokens,
            )  # fmt: skip
            ask = AskConfig(k=k, order=order, prior=prior, max_new_tokens=ANSWER_TOKENS)
            runs = evaluate_retrieved(
                paths, config=config, ask=ask, pool=pool, libraries=libraries, contexts=contexts, listen=listen, **same
            )
        else:
            prompts = split_commas(prompt) if prompt else (None,)
            runs = evaluate(
                paths, model=model, method=methods, option=option or (), adapter=adapters, prompts=prompts,
                workers=workers, listen=listen, **same,
            )  # fmt: skip
    if stored and stored.taken:
        console.notice(f"{stored.taken} runs were taken from {results} as they were stored")
    _notices(runs, pool)
    rows = [dataclasses.asdict(run) for run in runs]
    if not as_json:
        _show(rows, next(iter(adapters)))
        _show_at_once(rows)
        return
    own = {name: reader_of(name).own_adapter for name in readers}
    used = {} if all(own.values()) and track == "gold" else _used(methods, adapters)
    made_by = {name: kind for name, (kind, _) in used.items()}
    folders = {name: folder for name, (_, folder) in used.items()}
    folders |= {read_by: full_ft_adapter for read_by in own.values() if read_by}
    console.emit({"runs": rows, "versions": versions(), "fingerprints": fingerprints(model, folders, made_by)})


def _used(methods: Sequence[str], adapters: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Method and adapter of what was scored, by method, or by the adapter's name where there are several."""
    from sac_rag.compress.methods import METHODS

    found: dict[str, tuple[str, str]] = {}
    for method in methods:
        if len(methods) > 1 and not METHODS.load(method).trains:
            found[method] = method, "default"
            continue
        for name, folder in adapters.items():
            called = method if len(adapters) == 1 else name if len(methods) == 1 else f"{method} {name}"
            found[called] = method, folder
    return found


def _written(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line itself."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _adapters(given: Sequence[str]) -> dict[str, str]:
    """Adapters by name: that in front of the folder, or the folder's own."""
    found: dict[str, str] = {}
    for value in (part for text in given for part in text.split(",") if part):
        name, named, folder = value.partition("=")
        if not named or Path(value).is_dir():
            name, folder = Path(value).resolve().name, value
        if not name or not folder:
            raise ConfigError(f"--adapter is {value!r}; write NAME=FOLDER, or a folder alone")
        if name in found:
            raise ConfigError(f"two adapters are called {name!r}: {found[name]} and {folder}; name one by NAME=FOLDER")
        found[name] = folder
    if not found:
        raise ConfigError("--adapter names no adapter; give a folder")
    return found


def _paths(files: list[str], sets: list[str], data: str | None) -> list[str] | dict[str, list[str]]:
    """The files to score, given or in groups by their names."""
    if not sets:
        if not files or data is not None:
            raise ConfigError("give question files, or a group of them by --sets NAME --data FOLDER")
        return files
    if files or data is None:
        raise ConfigError(f"--sets {','.join(sets)} takes its files from --data FOLDER, and no others")
    from sac_rag.evaluate.tasks import files_of

    return {name: files_of(name, data) for name in sets}


def _notices(runs: Sequence[Run], pool: bool) -> None:
    from sac_rag.evaluate.tasks import is_macro

    for name, reader, cut in dict.fromkeys((run.set, run.reader, run.cut) for run in runs):
        if cut and not is_macro(name):
            console.notice(f"{name}, {reader}: {cut} did not fit the model's context and were cut")
    if pool:
        from sac_rag.evaluate.retrieved import POOL_PASSAGES

        size = getattr(runs[0], "passages", 0)
        if size < POOL_PASSAGES:
            console.notice(
                f"the pool has {size:,} passages; below {POOL_PASSAGES:,} retrieval is easier than in use: add files"
            )


def _show(runs: list[dict[str, Any]], first: str) -> None:
    """The table; `first` is what the first adapter is called."""
    more: list[str] = [name for name in ("passage_tokens", "k", "passages", "recall") if name in runs[0]]
    if any(r["prompt"] for r in runs):
        more.insert(0, "prompt")
    kept = ["of full-ft"] if any(r["retention"] is not None for r in runs) else []
    text = ["of text"] if any(r["of_text"] is not None for r in runs) else []
    size = ["bytes/token"] if text and any(r["bytes_per_source_token"] for r in runs) else []
    several = ["adapter"] if any(r["adapter"] for r in runs) else []
    compared = [f"F1 to {first}"] if several else []
    who = ("set", "reader", "method", *several, "ratio", "n")
    scores = ("F1", "EM", "ROUGE-1", "EM raw", "seconds", *more, "F1 95 %", *compared, *kept, *text, *size)
    console.table(
        (*who, *scores),
        [
            (
                *(r["set"], r["reader"], r["method"], *(r[name] for name in several)),
                *(None if r["ratio"] is None else f"{r['ratio']:g}", r["n"]),
                *(_percent(r[name]) for name in ("f1", "em", "rouge1", "em_raw")),
                f"{r['seconds']:.1f}",
                *(f"{100 * r[name]:.1f}" if name == "recall" else r[name] for name in more),
                f"{_percent(r['f1_low'])}-{_percent(r['f1_high'])}",
                *(_difference(r) for _ in compared),
                *(r["retention"] and _percent(r["retention"]) for _ in kept),
                *(r["of_text"] and _percent(r["of_text"]) for _ in text),
                *(r["bytes_per_source_token"] and f"{r['bytes_per_source_token']:,.0f}" for _ in size),
            )
            for r in runs
        ],
        numbers=("ratio", "n", *scores),
    )


def _show_at_once(runs: list[dict[str, Any]]) -> None:
    """The same by sets and readers, for people: a pipe has it all already."""
    from sac_rag.evaluate.crossed import crossed

    if console.is_terminal() and (rows := crossed(runs)):
        console.table(tuple(rows[0]), [tuple(row.values()) for row in rows], numbers=tuple(rows[0])[1:])


def _difference(run: Mapping[str, Any]) -> str | None:
    if run["difference"] is None:
        return None
    value, low, high = (f"{100 * run[name]:+.2f}" for name in ("difference", "difference_low", "difference_high"))
    return f"{value} ({low} to {high})"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
