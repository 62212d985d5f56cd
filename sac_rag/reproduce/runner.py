"""Computing what is missing, run by run, and writing the pages."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import write_atomic
from sac_rag.errors import ConfigError, SacError
from sac_rag.reproduce.experiment import chosen, experiment_of
from sac_rag.reproduce.page import Section
from sac_rag.reproduce.place import FIGURES, Place
from sac_rag.reproduce.plan import Found, Plan, needed
from sac_rag.reproduce.scales import scale_of
from sac_rag.reproduce.specs import KINDS, Spec
from sac_rag.reproduce.store import Store
from sac_rag.reproduce.systems import system_of
from sac_rag.reproduce.work.training import Stopped

Listen = Callable[[str, int, int], None]
"""(what is under way, units done, units in all)."""
ALL = "all runs"
"""What listeners hear the sum of runs called."""
PAGE = "README.md"
"""The page that names the others."""


@dataclass(frozen=True)
class Reproduced:
    """What there is in the end. whole: whether nothing was left because of a stop."""

    pages: dict[str, Path]
    tables: dict[str, list[dict[str, Any]]]
    """Experiment -> its sections: title, rows, pairs."""
    computed: int
    taken: int
    """Runs that were found instead of computed."""
    failed: dict[str, str]
    """Label of a run -> why it brought nothing."""
    notices: list[str]
    """What hindered pictures."""
    whole: bool


def reproduce(
    scale: str,
    output: str | Path,
    *,
    data: str | Path | None = None,
    only: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    steps: int | None = None,
    faithful: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    batch: int = 32,
    listen: Listen | None = None,
    stop: Callable[[], bool] | None = None,
) -> Reproduced:
    """Compute the runs of experiments that `output` lacks, and write a page for each experiment.

    A run is one JSON file in output/runs; one that is there is not computed again, and training goes on from its last
    checkpoint. only: names of experiments, or of the paper's tables and figures (table3, figure9); None is all.
    systems: those that take part; None is all. steps: of finetuning, in place of the scale's, all else in proportion.
    faithful: with options, prompt and LoRA of the published code (`Scale.as_published`). A run that fails is told on
    the pages and tried again the next time; the others go on, whatever it was. stop: asked after each run and each step
    of training; a true answer leaves the rest for another time. Raises ConfigError for unknown names, and for data or
    models that are missing.
    """
    names = chosen(only)
    chosen_scale = scale_of(scale) if steps is None else scale_of(scale).with_steps(steps)
    chosen_scale = chosen_scale.as_published() if faithful else chosen_scale
    place = Place.make(chosen_scale, data, output, device=device, dtype=dtype, batch=batch)
    for name in systems or ():
        system_of(name)
    plan, store = Plan(place, systems), Store(place)
    specs = needed(spec for name in names for spec in experiment_of(name).runs(plan))
    results: dict[Spec, dict[str, Any]] = {}
    failed: dict[Spec, str] = {}
    taken, whole = 0, True
    listen = listen or (lambda label, done, total: None)
    for number, spec in enumerate(specs):
        listen(ALL, number, len(specs))
        try:
            if lost := next((s for s in spec.before() if s in failed), None):
                failed[spec] = f"it needs {lost.label}, which failed"
                continue
            made = store.find(spec)
            if made is not None:
                results[spec], taken = made, taken + 1
                continue
            if stop and stop():
                whole = False
                break
            results[spec] = _computed(spec, place, store, listen, stop or (lambda: False))
        except Stopped:
            whole = False
            break
        except SacError as error:
            failed[spec] = str(error)
        except Exception as error:  # hours of other runs are not lost for one that nobody foresaw
            path = store.path(spec).with_suffix(".error.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(traceback.format_exc(), "utf-8")
            failed[spec] = f"{type(error).__name__}: {error} (its traceback: {path.name})"
    listen(ALL, len(specs), len(specs))
    place.unload()
    pages, tables, notices = _pages(names, plan, Found(results, failed))
    told = {spec.label: why for spec, why in failed.items()}
    return Reproduced(pages, tables, len(results) - taken, taken, told, notices, whole)


def _computed(spec: Spec, place: Place, store: Store, listen: Listen, stop: Callable[[], bool]) -> dict[str, Any]:
    began = time.monotonic()

    def heard(done: int, total: int) -> None:
        listen(spec.label, done, total)

    result: dict[str, Any] = KINDS.load(spec.kind)(spec, place, heard, stop)
    store.keep(spec, result, time.monotonic() - began)
    return result


def _pages(
    names: Sequence[str], plan: Plan, found: Found
) -> tuple[dict[str, Path], dict[str, list[dict[str, Any]]], list[str]]:
    """Write a page for each experiment and one that names all that lie there; what hindered pictures comes last."""
    pages, tables, notices = {}, {}, set[str]()
    output = plan.place.output
    for name in names:
        experiment = experiment_of(name)
        sections = experiment.sections(plan, found)
        notices |= _draw(output / FIGURES, sections)
        pages[name] = output / f"{name}.md"
        write_atomic(pages[name], _markdown(experiment.title, plan, sections).encode())
        tables[name] = [_plain(section) for section in sections]
    here = [name for name in chosen(None) if (output / f"{name}.md").is_file()]
    lines = [f"* [{experiment_of(name).title}]({name}.md)" for name in here]
    head = f"# The paper's tables and figures, {_scale(plan)}"
    write_atomic(output / PAGE, ("\n\n".join((head, "\n".join(lines))) + "\n").encode())
    return pages, tables, sorted(notices)


def _draw(folder: Path, sections: Sequence[Section]) -> set[str]:
    """Write the pictures of a page; what hinders one is told in its place, and returned."""
    hindered = set()
    for section in sections:
        drawn = []
        for picture in section.pictures:
            try:
                svg = picture.draw()
            except ConfigError as error:
                hindered.add(str(error))
                section.text += f"\n\nNo picture: {error}."
                continue
            folder.mkdir(exist_ok=True)
            write_atomic(folder / picture.name, svg.encode())
            drawn.append(picture)
        section.pictures = drawn
    return hindered


def _markdown(title: str, plan: Plan, sections: Sequence[Section]) -> str:
    head = f"# {title}\n\nAt {_scale(plan)}. Empty cells of the paper: the figure is not known here.\n"
    return "\n".join([head, *(section.markdown(FIGURES) for section in sections)])


def _scale(plan: Plan) -> str:
    s = plan.scale
    steps, published = f"{s.settings['finetune']['steps']:,}", ", as the published code" if s.faithful else ""
    return f"scale {s.name} ({s.model or 'a random model'}, {steps} updates of finetuning{published})"


def _plain(section: Section) -> dict[str, Any]:
    pairs = [
        {"first": p.first, "second": p.second, "paper": p.paper, "difference": p.difference, "verdict": p.verdict}
        for p in section.pairs
    ]
    return {"title": section.title, "rows": section.rows, "pairs": pairs}
