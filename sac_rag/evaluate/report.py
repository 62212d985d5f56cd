"""docs/results.md from recorded JSON: `python -m sac_rag.evaluate.report docs/results > docs/results.md`.

Each JSON file of the folder is one recorded run: {"title", "command", "note", "tables": {name: [row, ...]}, "origin"},
as `record` writes it. Rows are flat objects; columns are those of the first row. Figures are drawn from the same rows
and written beside the JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sac_rag.errors import ConfigError
from sac_rag.evaluate.crossed import crossed, crossed_times
from sac_rag.evaluate.figures import figures, is_training
from sac_rag.evaluate.summary import picture, summary

HEAD = """# Results

Generated from the recorded runs in [results/](results/) by `python -m sac_rag.evaluate.report docs/results`;
a test keeps the two alike. Each section names the command that printed its figures.
"""
PERCENT = frozenset(
    {
        *("f1", "em", "rouge1", "em_raw", "recall", "retention", "of_text", "difference"),
        *("precision", "kept", "f1_kept", "f1_all", "share", "f1_memory", "f1_text", "f1_auto", "gain", "answerable"),
        *("wrong", "right", "marked", "unmarked"),
    }
)
"""Columns that hold shares, 0..1; in a training run `recall` is a loss."""
ORIGIN = ("versions", "fingerprints")
TRAINING = ("step", "examples", "loss", "recall")
FOLDED = "Every run, with intervals"
RECORDED_STEPS, SHOWN_STEPS = 200, 8
"""Steps of a training run that are recorded, and those of them that the page tabulates."""


def record(folder: Path, name: str, title: str, command: str, note: str, tables: Mapping[str, Any]) -> None:
    """Store one run beside the others. Of keys of `tables` that do not hold rows, versions and fingerprints stay."""
    rows = {k: v for k, v in tables.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    whole: dict[str, Any] = {"title": title, "command": command, "note": note, "tables": rows}
    if origin := {k: tables[k] for k in ORIGIN if tables.get(k)}:
        whole["origin"] = origin
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def recordable(text: str) -> dict[str, Any]:
    """What a command printed: one JSON object, or the lines of a training run's metrics.jsonl, thinned."""
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and not is_training([whole]):
        return whole
    try:
        steps = [json.loads(line) for line in text.splitlines() if line.strip()]
        if is_training(steps):
            last = {s["step"]: s for s in steps}  # a kill repeats the steps since its checkpoint
            rows = [{k: s[k] for k in TRAINING if k in s} for _, s in sorted(last.items())]
            return {"training": thinned(rows, RECORDED_STEPS)}
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError("standard input is neither a JSON object nor a metrics.jsonl; pipe what --json prints")


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def render(folder: Path) -> str:
    """The whole page; raises ConfigError naming a file that is no recorded run."""
    runs = {path: _run(path) for path in _recorded(folder)}
    named = {path.stem: run for path, run in runs.items()}
    parts = [HEAD, summary(named), *(f"![{alt(svg)}]({folder.name}/{name})\n" for name, svg in picture(named).items())]
    for path, run in runs.items():
        try:
            parts.append(f"## {run['title']}\n\n```bash\n{run['command']}\n```\n\n{run['note']}".rstrip() + "\n")
            parts += [_tables(rows) for rows in run["tables"].values()]
            parts += [f"![{alt(svg)}]({folder.name}/{name})\n" for name, svg in _figures(path, run).items()]
            if "origin" in run:
                parts.append(_origin(run["origin"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _no_run(path, error) from error
    return "\n".join(filter(None, parts))


def _run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise _no_run(path, error) from error
    if not isinstance(run, dict) or not isinstance(run.get("tables"), dict):
        raise _no_run(path, "no object with tables")
    return run


def _no_run(path: Path, why: object) -> ConfigError:
    return ConfigError(f"{path} is no recorded run (title, command, note, tables): {why}")


def _tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows; where they can be seen at once, that first, and each with its interval folded away below."""
    if is_training(rows):
        return table(thinned(rows, SHOWN_STEPS))
    if not (seen := crossed(rows) or crossed_times(rows)):
        return table(rows)
    return f"{table(seen)}\n<details><summary>{FOLDED}</summary>\n\n{table(rows)}\n</details>\n"


def drawn(folder: Path) -> dict[str, str]:
    """File name -> SVG of every figure on the page; they lie in the folder of the records."""
    runs = {path: _run(path) for path in _recorded(folder)}
    found = picture({path.stem: run for path, run in runs.items()})
    for path, run in runs.items():
        found |= _figures(path, run)
    return found


def _recorded(folder: Path) -> list[Path]:
    """The records by the number that their names begin with, 10 behind 9."""

    def place(path: Path) -> tuple[int, str]:
        number, _, name = path.stem.partition("-")
        return (int(number), name) if number.isdecimal() else (sys.maxsize, path.stem)

    return sorted(folder.glob("*.json"), key=place)


def _figures(path: Path, run: Mapping[str, Any]) -> dict[str, str]:
    return figures(path.stem, run["tables"])


def alt(svg: str) -> str:
    """The title of an SVG of ours."""
    return svg.partition("<title>")[2].partition("</title>")[0]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table; scores in percent with their interval, other numbers to four digits, empty columns left out."""
    percent = frozenset() if is_training(rows) else PERCENT
    names = [c for c in rows[0] if any(r.get(c) is not None for r in rows)]
    columns = [c for c in names if c.removesuffix("_low").removesuffix("_high") not in percent or c in percent]
    heads = [c.replace("_", " ") for c in columns]
    return grid(heads, ([_cell(c, r, c in percent) for c in columns] for r in rows)) + "\n"


def grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are `escaped`."""
    lines = (heads, ["---"] * len(heads), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def escaped(value: object) -> str:
    """A value as a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _cell(column: str, row: Mapping[str, Any], percent: bool) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if isinstance(value, float) and percent:
        low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
        return f"{100 * value:.1f}" + (
            f" ({100 * low:.1f} to {100 * high:.1f})" if low is not None and high is not None else ""
        )
    return f"{value:.4g}" if isinstance(value, float) else escaped(value)


def _origin(origin: Mapping[str, Any]) -> str:
    """One line of what a run was made with; hashes by their first twelve digits."""
    prints = origin.get("fingerprints", {})
    parts = [f"{name} {version}" for name, version in origin.get("versions", {}).items()]
    if "model_sha256" in prints:
        parts.append(f"base `{prints['model_sha256'][:12]}`")
    parts += [f"{method} adapter `{sha[:12]}`" for method, sha in prints.get("adapter_sha256", {}).items()]
    return f"Made with {', '.join(parts)}.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figures of a folder and print its page, or with `record NAME TITLE COMMAND NOTE` store a run there.

    What is stored comes from standard input: what a command printed with --json, or a run's metrics.jsonl.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if len(args) == 1:
        page = render(Path(args[0]))
        for name, svg in drawn(Path(args[0])).items():
            (Path(args[0]) / name).write_text(svg, encoding="utf-8")
        sys.stdout.write(page)
        return 0
    if len(args) == 6 and args[1] == "record":
        folder, _, name, title, command, note = args
        record(Path(folder), name, title, command, note, recordable(sys.stdin.read()))
        return 0
    sys.stderr.write("usage: report FOLDER | report FOLDER record NAME TITLE COMMAND NOTE < run.json\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
