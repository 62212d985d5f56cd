"""A recipe from the data folder to an evaluated adapter, in one command on a machine with a GPU.

    PYTHONPATH=. python scripts/gpu_recipe.py --data DATA --output OUT --recipe large --time-budget 3000

Needs torch, transformers, safetensors and numpy only; a base model that is not in the cache is given as a folder
by --base. Trains stage after stage with checkpoints (the same command goes on where it was), scores the adapter on dev
sets, and leaves adapter.safetensors, card.json, results.json and the scores of each question (scores/) in OUT. On a CPU
`--recipe tiny` rehearses it in a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import Card, write_atomic
from sac_rag.config import DEFAULT_MODEL
from sac_rag.errors import ConfigError, SacError
from sac_rag.evaluate.harness import evaluate
from sac_rag.evaluate.results import Results, fingerprints, versions
from sac_rag.evaluate.runs import Run
from sac_rag.models.loading import choose_device
from sac_rag.models.sources import resolve_base
from sac_rag.train.loop import Progress
from sac_rag.train.recipes import Recipe, Stage, find_recipe
from sac_rag.train.speed import Speed, block_parameters, peak_of, speed_of
from sac_rag.train.stages import follow

DEV = tuple(f"qa/{name}.dev.jsonl.gz" for name in ("fairytaleqa", "ropes", "policyqa", "tatqa", "boolq", "cosmosqa"))
"""Sets that settings may be tuned on."""
GPU_MICRO_TOKENS = 16_384
SECONDS_BETWEEN_LINES = 20.0


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", required=True, help="folder with lm/, qa/ and summ/")
    add("--output", required=True, help="folder for everything that is made")
    add("--recipe", default="large", help="name of a recipe (sac train --help lists them)")
    add("--base", default=DEFAULT_MODEL, help="base model: a folder, a name, a hub id or a .gguf file")
    add("--steps-scale", type=float, default=1.0, help="so many times the recipe's steps")
    add(
        "--micro-tokens", type=int, help=f"tokens of a micro-batch (default: the recipe's, {GPU_MICRO_TOKENS} on a GPU)"
    )
    add("--time-budget", type=float, metavar="SECONDS", help="training time; stages are cut short to keep it")
    add("--dev", action="append", metavar="FILE", help="set to score, relative to --data; repeat (default: dev sets)")
    add("--limit", type=int, default=200, help="questions of each set")
    add("--batch", type=int, default=64, help="questions decoded together")
    add("--full-ft-adapter", metavar="DIR", help="also score this ceiling, for retention")
    add("--device", default="auto")
    add("--dtype", default="auto")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    a = arguments(given)
    if importlib.util.find_spec("platformdirs") is None:  # which tells where a user's cache is
        os.environ.setdefault("SAC_CACHE", str(Path(a.output) / "cache"))
    try:
        work(a)
    except SacError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def work(a: argparse.Namespace) -> None:
    device = choose_device(a.device)
    name, peak = peak_of(device)
    data, output = Path(a.data), Path(a.output)
    recipe = find_recipe(a.recipe).scaled(a.steps_scale)
    if micro := a.micro_tokens or (GPU_MICRO_TOKENS if device.type == "cuda" else None):
        recipe = recipe.regrouped(micro)
    files = [data / f for f in a.dev or DEV]
    if missing := [str(f) for f in files if not f.is_file()]:
        raise ConfigError(f"no set to score at {', '.join(missing)}; name others by --dev, relative to {data}")
    say(f"{recipe.name} on {name}, peak {f'{peak:g} TFLOP/s' if peak else 'unknown'}: {recipe.about}")
    done = follow(
        recipe,
        data,
        output,
        base=a.base,
        device=a.device,
        dtype=a.dtype,
        seconds=a.time_budget,
        listen=Lines(),
    )
    parameters = block_parameters(resolve_base(a.base))
    speeds = [speed_of(stage, parameters, peak) for stage in done.card.training["stages"]]
    runs = scored(a, recipe, done.card, done.folder, [str(f) for f in files])
    adapters = {recipe.method: str(done.folder)} | ({"full-ft": a.full_ft_adapter} if a.full_ft_adapter else {})
    results = {
        "recipe": recipe.name,
        "device": name,
        "peak_tflops": peak,
        "training": [dataclasses.asdict(s) for s in speeds],
        "runs": [dataclasses.asdict(r) for r in runs],
        "versions": versions(),
        "fingerprints": fingerprints(a.base, adapters),
    }
    write_json(output / "results.json", results)
    metrics = {"command": f"scripts/gpu_recipe.py --recipe {recipe.name} --limit {a.limit}", "runs": results["runs"]}
    dataclasses.replace(Card.read(done.folder), metrics=metrics).write(done.folder)  # calibrated since, perhaps
    sys.stdout.write(table(name, speeds, runs))


def scored(a: argparse.Namespace, recipe: Recipe, card: Card, adapter: Path, files: list[str]) -> list[Run]:
    """The adapter on every set: compressed memory beside the untrained model that reads the text, or Full-FT alone."""
    who: dict[str, Any] = {"readers": ["full-ft"], "full_ft_adapter": str(adapter)}
    if recipe.method != "full-ft":
        who = {"readers": ["text", "memory"], "method": recipe.method, "adapter": str(adapter)}
        if a.full_ft_adapter:
            who |= {"readers": [*who["readers"], "full-ft"], "full_ft_adapter": a.full_ft_adapter}
    return evaluate(
        files,
        **who,
        model=a.base,
        ratios=card.ratios,
        limit=a.limit,
        batch=a.batch,
        device=a.device,
        dtype=a.dtype,
        results=Results(Path(a.output) / "scores"),
    )


class Lines:
    """A line of progress every twenty seconds and at the end of a stage."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, stage: Stage, p: Progress) -> None:
        if p.step == p.steps or time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(f"{stage.name} {p.step}/{p.steps}  loss {p.loss:.3f}  {p.per_second:.1f} examples/s")


def table(device: str, speeds: Sequence[Speed], runs: Sequence[Run]) -> str:
    lines = [f"{'stage':8}{'steps':>7}{'examples':>10}{'examples/s':>12}{'tokens/s':>11}{'TFLOP/s':>9}  share of peak"]
    for s in speeds:
        share = f"unknown card ({device})" if s.share_of_peak is None else f"{100 * s.share_of_peak:.1f} %"
        counts = f"{s.steps:7,}{s.examples:10,}{s.examples_per_s:12.1f}{s.tokens_per_s:11,.0f}{s.model_tflops:9.2f}"
        lines.append(f"{s.objective:8}{counts}  {share}")
    lines.append("")
    lines.append(f"{'set':24}{'reader':9}{'ratio':>6}{'n':>6}{'F1':>7}{'EM':>7}  of Full-FT")
    for r in runs:
        ratio = f"{r.ratio:g}x" if r.ratio else ""
        kept = "" if r.retention is None else f"{100 * r.retention:.0f} %"
        lines.append(f"{r.set:24}{r.reader:9}{ratio:>6}{r.n:6}{100 * r.f1:7.1f}{100 * r.em:7.1f}  {kept}")
    return "\n".join(lines) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
