"""`sac calibrate`: thresholds of confidence for `--abstain`, for `--fidelity auto` and for marking doubtful answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_cli.bars import run_bars
from sac_cli.options import (
    Adapter,
    Batch,
    Device,
    Dtype,
    Json,
    KeptRuns,
    Limit,
    Method,
    Model,
    Ratios,
    numbers,
    split_commas,
)
from sac_cli.shell import command
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError

if TYPE_CHECKING:
    from sac_rag.evaluate.calibrate import Calibration

ABSTAINING = ("precision", "recall", "kept", "f1_kept")
DOUBTING = ("wrong", "right", "marked", "unmarked")


@command(
    "calibrate",
    example="""
    sac calibrate squad.dev.jsonl.gz --limit 300                        show thresholds and what they bring
    sac calibrate dev.jsonl --adapter runs/mine --ratio 5,15 --write    and put them into the adapter's card
    sac calibrate dev.jsonl --reader memory+2,adapted+2 --write         for answers with sentences beside memory
    sac calibrate --report test.jsonl --adapter runs/mine --ratio 5,15  measure those of the card on other questions
    """,
)
def calibrate(
    files: Annotated[
        list[str], typer.Argument(help="Questions with contexts: .jsonl, SQuAD .json, or .gz.", metavar="FILE")
    ],
    report: Annotated[
        bool, typer.Option("--report", help="Choose nothing: measure the thresholds of the adapter's card.")
    ] = False,
    reader: Annotated[
        list[str],
        typer.Option(
            help="What is judged: memory, memory+N (with N sentences beside it), adapted, adapted+N (the adapter's own "
            "reader) or text. Repeat or separate with commas. Fidelity auto needs memory and text."
        ),
    ] = ["memory", "text"],  # noqa: B006  read, never changed
    write: Annotated[bool, typer.Option("--write", help="Put the thresholds into the adapter's card.")] = False,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Precision that abstaining must reach; without it the threshold is chosen that tells answerable "
            "questions with the best F1."
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    method: Method = "sac",
    adapter: Adapter = "default",
    ratio: Ratios = ["5"],  # noqa: B006  read, never changed
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw of questions, and of the wrong passage for each.")] = 0,
    batch: Batch = 32,
    results: KeptRuns = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Find out when an answer is to be doubted: thresholds for --abstain, for --fidelity auto and for marking answers.

    Every question is answered from its own passage and from another's, by each reader. Abstaining is judged by how well
    it tells the two apart; marking as doubtful by how well it tells right answers from wrong ones; falling back to text
    by the F1 it gains. A threshold is "never" where no gain is certain. Use questions that the adapter was
    not trained on, and report on others.
    """
    ratios, readers = numbers(ratio, "--ratio"), split_commas(reader)
    if report and (write or precision is not None):
        raise ConfigError("--report measures the thresholds of the card: leave out --write and --precision")
    with console.working("loading"):
        from sac_rag.answer.engine import adapter_folder
        from sac_rag.evaluate import calibrate as core
        from sac_rag.evaluate.results import Results, fingerprints, versions
    if (folder := adapter_folder(model, method, adapter)) is None:
        raise ConfigError(f"method {method!r} has no adapter whose card could hold thresholds")
    given = core.stored(folder, ratios, readers, model=model, adapter=adapter) if report else None
    if write:
        core.check_writable(folder)
    kept = Results(results) if results else None
    same: dict[str, Any] = {"model": model, "method": method, "adapter": adapter, "device": device, "dtype": dtype}
    with run_bars() as listen:
        found = core.calibrate(
            files, readers=readers, given=given, precision=precision, ratios=ratios, limit=limit, seed=seed,
            batch=batch, results=kept, listen=listen, **same,
        )  # fmt: skip
    if kept and kept.taken:
        console.notice(f"{kept.taken} runs were taken from {results} as they were stored")
    if write:
        core.store(folder, found, _written(files, readers, ratios, precision, limit, seed))
    tables = _tables(found)
    if as_json:
        made = {"versions": versions(), "fingerprints": fingerprints(model, {method: adapter})}
        console.emit({**tables, **made, "written": write})
        return
    _show(tables)
    if write:
        console.hint(f"written into {folder / 'card.json'}")


def _written(
    files: Sequence[str],
    readers: Sequence[str],
    ratios: Sequence[float],
    precision: float | None,
    limit: int | None,
    seed: int,
) -> str:
    """The command as a card records it: files by name, for paths mean nothing elsewhere."""
    chosen = None if set(readers) == {"memory", "text"} else ",".join(readers)
    flags = {
        "reader": chosen,
        "ratio": ",".join(f"{r:g}" for r in ratios),
        "precision": precision,
        "limit": limit,
        "seed": seed,
    }
    given = (f"--{name} {value}" for name, value in flags.items() if value is not None)
    return " ".join(["sac calibrate", *(Path(f).name for f in files), *given])


def _tables(found: Sequence[Calibration]) -> dict[str, list[dict[str, Any]]]:
    """Flat rows; text, which is the same at every ratio, once."""
    abstaining = dict.fromkeys(row for rows in zip(*(c.abstaining for c in found), strict=True) for row in rows)
    doubting = dict.fromkeys(row for rows in zip(*(c.doubting for c in found), strict=True) for row in rows)
    return {
        "abstaining": [dataclasses.asdict(row) for row in abstaining],
        "doubting": [dataclasses.asdict(row) for row in doubting],
        "falling_back": [dataclasses.asdict(c.fallback) for c in found if c.fallback],
        "curve": [dataclasses.asdict(row) for c in found for row in c.curve],
    }


def _show(tables: dict[str, list[dict[str, Any]]]) -> None:
    console.table(
        ("abstaining", "ratio", "below", "n", "precision", "recall", "kept", "F1 kept", "F1 of all", "AUROC"),
        [
            (
                *(r["reader"], _ratio(r["ratio"]), _threshold(r["threshold"]), r["n"]),
                *(_interval(r, name) for name in ABSTAINING),
                *(_percent(r["f1_all"]), f"{r['auroc']:.3f}"),
            )
            for r in tables["abstaining"]
        ],
        numbers=("ratio", "below", "n"),
    )
    console.table(
        ("doubting", "ratio", "below", "n", "wrong", "right", "right if marked", "right if not"),
        [
            (
                *(r["reader"], _ratio(r["ratio"]), _threshold(r["threshold"]), r["n"]),
                *(_interval(r, name) for name in DOUBTING),
            )
            for r in tables["doubting"]
        ],
        numbers=("ratio", "below", "n"),
    )
    console.table(
        ("falling back", "ratio", "below", "n", "of questions", "F1 memory", "F1 text", "F1 auto", "gain"),
        [
            (
                *("memory", _ratio(r["ratio"]), _threshold(r["threshold"]), r["n"]),
                *(_percent(r[name]) for name in ("share", "f1_memory", "f1_text", "f1_auto")),
                _interval(r, "gain"),
            )
            for r in tables["falling_back"]
        ],
        numbers=("ratio", "below", "n"),
    )
    console.table(
        ("confidence", "ratio", "from", "to", "n", "answerable", "F1 memory", "F1 text"),
        [
            (
                *("memory", _ratio(r["ratio"]), f"{r['low']:.3f}", f"{r['high']:.3f}", r["n"]),
                *(_percent(r[name]) for name in ("answerable", "f1_memory", "f1_text")),
            )
            for r in tables["curve"]
        ],
        numbers=("ratio", "from", "to", "n", "answerable", "F1 memory", "F1 text"),
    )


def _ratio(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def _threshold(value: float | None) -> str:
    return "never" if value is None else f"{value:.3f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _interval(row: dict[str, Any], name: str) -> str | None:
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return None if value is None else f"{_percent(value)} ({_percent(low)} to {_percent(high)})"
