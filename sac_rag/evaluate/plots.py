"""Line charts as SVG, written by hand: no plotting library, the same bytes on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 150, 40, 52
"""Margins in pixels; the right one holds the legend."""
NAME, LETTER = 21, 7
"""Letters of a name that the legend has room for, and the pixels by which each one more widens the chart."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito (2008), with grey for their yellow: told apart by colour-blind readers, and on white."""


@dataclass(frozen=True)
class Line:
    """Points (x, y), ascending in x, joined; `bars` holds (low, high) for each point, or nothing."""

    name: str
    points: tuple[tuple[float, float], ...]
    bars: tuple[tuple[float, float], ...] = ()
    marks: bool = True
    """Whether points are drawn as dots."""


@dataclass(frozen=True)
class Level:
    """A value that does not depend on x: a dashed horizontal line."""

    name: str
    y: float


def chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], levels: Sequence[Level] = (), *, log_x: bool = False
) -> str:
    """An SVG document; y begins at 0. Needs at least one point, and x > 0 for a logarithmic axis."""
    xs = sorted({x for line in lines for x, _ in line.points})
    tops = [y for line in lines for y in (*(p[1] for p in line.points), *(b[1] for b in line.bars))]
    y_ticks = _ticks(0.0, max([*tops, *(level.y for level in levels)]) * 1.05 or 1.0, cover=True)
    x_ticks = (xs if len(xs) <= 8 else _decades(xs[0], xs[-1])) if log_x else _ticks(xs[0], xs[-1])
    place_x, place_y = _scales(xs[0], xs[-1], y_ticks[-1], log_x)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    items: list[Line | Level] = [*lines, *levels]
    width = WIDTH + LETTER * max(0, max(len(item.name) for item in items) - NAME)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}" '
        f'role="img" font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 20, title, size=14),
        _text((LEFT + right) / 2, HEIGHT - 12, x_label + (" (logarithmic)" if log_x else ""), "middle"),
        f'<g transform="rotate(-90)">{_text(-(TOP + bottom) / 2, 14, y_label, "middle")}</g>',
    ]
    for y in y_ticks:
        out.append(_segment(LEFT, place_y(y), right, place_y(y), "#ddd"))
        out.append(_text(LEFT - 6, place_y(y) + 4, f"{y:g}", "end"))
    for x in x_ticks:
        out.append(_segment(place_x(x), bottom, place_x(x), bottom + 5, "#222"))
        out.append(_text(place_x(x), bottom + 18, _short(x), "middle"))
    out.append(_segment(LEFT, bottom, right, bottom, "#222"))
    legend = TOP + 4
    for index, item in enumerate(items):
        colour = COLOURS[index % len(COLOURS)]
        if isinstance(item, Level):
            out.append(_segment(LEFT, place_y(item.y), right, place_y(item.y), colour, ' stroke-dasharray="6 4"'))
        else:
            out += _drawn(item, colour, place_x, place_y)
        dashes = ' stroke-dasharray="6 4"' if isinstance(item, Level) else ""
        out.append(_segment(right + 10, legend - 4, right + 32, legend - 4, colour, f' stroke-width="2"{dashes}'))
        out.append(_text(right + 38, legend, item.name))
        legend += 18
    return "\n".join([*out, "</svg>"]) + "\n"


def _drawn(line: Line, colour: str, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> list[str]:
    """A line with its dots and interval bars."""
    at = [(place_x(x), place_y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, _), (low, high) in zip(at, line.bars, strict=False):
        out.append(_segment(x, place_y(low), x, place_y(high), colour, ' class="bar"'))
        out += [_segment(x - 4, place_y(y), x + 4, place_y(y), colour) for y in (low, high)]
    return out + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at if line.marks]


def _scales(
    first: float, last: float, top: float, log_x: bool
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Data to pixels, for x (with a little air at both ends) and y."""
    bend = math.log10 if log_x else float
    low, high = bend(first), bend(last)
    air = 0.04 * (high - low) or 0.5
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return (
        lambda x: LEFT + width * (bend(x) - low + air) / (high - low + 2 * air),
        lambda y: TOP + height * (1 - y / top),
    )


def _ticks(low: float, high: float, *, cover: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times 10^n between two values; `cover`: on to the first that is not below `high`."""
    raw = ((high - low) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if cover and last * step < high:
        last += 1
    return [round(i * step, 10) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for p in powers for m in (1, 2, 5) if low <= (v := m * 10.0**p) <= high]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _segment(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{more}/>'
