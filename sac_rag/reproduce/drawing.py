"""Pictures as SVG, by matplotlib: the same bytes for the same figures. Needs the extra `plots`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sac_rag.errors import ConfigError

REMEDY = "pip install 'sac-rag[plots]' and run the same command again"
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """A file of a page, drawn when it is written."""

    name: str
    shown: str
    """What it shows, for those who do not see it."""
    draw: Callable[[], str]


def lines(title: str, x: str, y: str, series: Mapping[str, Points], *, level: float | None = None) -> str:
    """Points (x, y) joined to lines, by name. level: a dashed horizontal line."""
    figure, (axes,) = _axes(1)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.4)
    if level is not None:
        axes.axhline(level, color="#888888", linestyle="--", linewidth=1)
    _label(axes, title, x, y)
    axes.legend(fontsize=8)
    return _svg(figure)


def trade_off(title: str, axes_of: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float, str]]]]]) -> str:
    """F1 against a cost, a panel for each (label of x, {system: (cost, F1, label of the point)})."""
    figure, panels = _axes(len(axes_of))
    for axes, (x, series) in zip(panels, axes_of, strict=True):
        for name, points in series.items():
            axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name, linewidth=1.2)
            for cost, f1, label in points:
                axes.annotate(label, (cost, f1), fontsize=7, xytext=(3, 3), textcoords="offset points")
        _label(axes, title, x, "F1, percent")
    panels[0].legend(fontsize=8)
    return _svg(figure)


def clouds(panels_of: Mapping[str, Mapping[str, Points]]) -> str:
    """Points of several kinds in two dimensions, a panel for each title."""
    figure, panels = _axes(len(panels_of))
    for axes, (title, kinds) in zip(panels, panels_of.items(), strict=True):
        for name, points in kinds.items():
            axes.scatter(*zip(*points, strict=True), s=6, label=name, alpha=0.7, linewidths=0)
        _label(axes, title, "", "")
        axes.set_xticks([])
        axes.set_yticks([])
    panels[0].legend(fontsize=8)
    return _svg(figure)


def maps(panels_of: Mapping[str, Sequence[Sequence[float]]], x: str, y: str) -> str:
    """Matrices as shades, a panel for each title; each by its own largest value."""
    figure, panels = _axes(len(panels_of))
    for axes, (title, rows) in zip(panels, panels_of.items(), strict=True):
        axes.imshow(rows, aspect="auto", cmap="viridis", interpolation="nearest")
        _label(axes, title, x, y)
    return _svg(figure)


def _axes(count: int) -> tuple[Any, Sequence[Any]]:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(f"pictures need matplotlib: {REMEDY}") from None
    matplotlib.rcParams["svg.hashsalt"] = "sac-rag"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 3.8), layout="constrained")
    return figure, [figure.add_subplot(1, count, n + 1) for n in range(count)]


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
