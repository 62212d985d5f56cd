"""Charts are read back as XML: where points lie, what is labelled, and that nothing in a name breaks them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as xml

import pytest

from sac_rag.evaluate.figures import figures
from sac_rag.evaluate.plots import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Level, Line, chart

SVG = "{http://www.w3.org/2000/svg}"


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def points(root):
    return [
        [tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in root.iter(f"{SVG}polyline")
    ]


def bars(root):
    found = [e for e in root.iter(f"{SVG}line") if e.get("class") == "bar"]
    return [tuple(float(e.get(k)) for k in ("x1", "y1", "y2")) for e in found]


def test_points_lie_where_their_values_say():
    line = Line("a <b> & c", ((5.0, 40.0), (15.0, 30.0), (45.0, 0.0)), ((35.0, 45.0), (30.0, 30.0), (0.0, 10.0)))
    root = xml.fromstring(chart("T & <t>", "ratio", "F1", [line], [Level("text", 50.0)], log_x=True))
    ((p, q, r),) = points(root)
    assert q[0] - p[0] == pytest.approx(r[0] - q[0], abs=0.2)  # equal factors are equal distances
    bottom = r[1]
    assert (bottom - p[1]) / (bottom - q[1]) == pytest.approx(4 / 3, rel=0.01)
    unit = (bottom - p[1]) / 40
    spans = bars(root)
    assert [x for x, *_ in spans] == [x for x, _ in (p, q, r)]
    assert [abs(low - high) / unit for _, low, high in spans] == pytest.approx([10, 0, 10], abs=0.1)
    dashed = [e for e in root.iter(f"{SVG}line") if e.get("stroke-dasharray")]
    assert (bottom - float(dashed[0].get("y1"))) / unit == pytest.approx(50, abs=0.1)
    assert dashed[0].get("y1") == dashed[0].get("y2")
    said = texts(root)
    assert {"T & <t>", "ratio (logarithmic)", "F1", "a <b> & c", "text", "5", "15", "45", "0"} <= set(said)
    assert root.find(f"{SVG}title").text == "T & <t>"
    for x, y in (p, q, r):
        assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT


def test_axes_are_linear_unless_told_and_ticks_are_round():
    line = Line("loss", tuple((float(x), 5 / math.sqrt(x)) for x in range(1, 1001, 37)), marks=False)
    root = xml.fromstring(chart("t", "x", "y", [line]))
    ((first, *_, last),) = points(root)
    ticks = [t.text for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "middle"]
    assert {"200", "400", "600", "800"} <= set(ticks) and "x" in ticks and not any("log" in t for t in ticks)
    ends = [t.text for t in root.iter(f"{SVG}text") if t.get("text-anchor") == "end"]
    assert ends == ["0", "2", "4", "6"] and first[1] < last[1]
    assert not list(root.iter(f"{SVG}circle"))


def test_one_point_is_drawn_in_the_middle():
    root = xml.fromstring(chart("t", "x", "y", [Line("a", ((7.0, 0.0),))], log_x=True))
    (((x, _),),) = points(root)
    assert x == pytest.approx((LEFT + WIDTH - RIGHT) / 2)


def test_many_values_of_x_get_round_ticks():
    line = Line("a", tuple((float(x), 1.0) for x in range(3, 200, 7)))
    said = texts(xml.fromstring(chart("t", "x", "y", [line], log_x=True)))
    assert {"5", "10", "20", "50", "100"} <= set(said) and "1" not in said[:4]


def row(reader, ratio=None, f1=0.5, **more):
    method = "sac" if reader == "memory" else None
    low_high = {"f1_low": f1 - 0.1, "f1_high": f1 + 0.1}
    return {"set": "a", "reader": reader, "method": method, "ratio": ratio, "f1": f1, **low_high, **more}


def test_scores_of_several_ratios_make_figures():
    rows = [
        row("memory", 15.0, 0.3, bytes_per_source_token=1500.0),
        row("memory", 5.0, 0.6, bytes_per_source_token=4600.0),
        row("text", f1=0.2),
        row("full-ft", f1=0.8),
        row("closed", f1=0.1),
    ]
    found = figures("1-x", {"runs": rows})
    assert set(found) == {"1-x.runs.f1-by-ratio.svg", "1-x.runs.f1-by-bytes.svg"}
    for name, svg in found.items():
        root = xml.fromstring(svg)
        ((p, q),) = points(root)
        assert p[0] < q[0] and len(bars(root)) == 2
        assert (p[1] < q[1]) == name.endswith("ratio.svg")
        assert {"memory (sac)", "text", "full-ft", "closed", "F1 on a"} <= set(texts(root))
    bare = [{k: v for k, v in r.items() if "_" not in k} for r in rows]
    (svg,) = figures("1-x", {"runs": bare}).values()
    assert not bars(xml.fromstring(svg))


def test_of_several_sets_their_average_is_drawn():
    rows = [{**row("memory", r, f1), "set": s} for s, f1 in (("a", 0.2), ("b", 0.4)) for r in (5.0, 15.0)]
    assert figures("x", {"runs": rows}) == {}
    rows += [{**row("memory", r, 0.3), "set": "macro"} for r in (5.0, 15.0)]
    (svg,) = figures("x", {"runs": rows}).values()
    assert "F1 on macro" in svg and svg.count("<polyline") == 1


def test_each_group_of_sets_and_each_adapter_is_drawn():
    rows = [
        {**row("memory", r, f1), "set": s, "adapter": a}
        for s, f1 in (("a", 0.2), ("macro in-domain", 0.3), ("macro out-of-domain", 0.4))
        for a in ("whole", "without anchor embedding")
        for r in (5.0, 15.0)
    ]
    found = figures("x", {"runs": rows})
    assert set(found) == {f"x.runs.macro-{name}.f1-by-ratio.svg" for name in ("in-domain", "out-of-domain")}
    root = xml.fromstring(found["x.runs.macro-in-domain.f1-by-ratio.svg"])
    assert {"F1 on macro in-domain", "whole", "without anchor embedding"} <= set(texts(root))
    assert len(points(root)) == 2
    alone = [r for r in rows if r["set"] == "macro in-domain"]
    assert set(figures("x", {"runs": alone})) == {"x.runs.f1-by-ratio.svg"}


def test_each_prompt_is_a_line_and_mixed_reading_too():
    rows = [
        row(reader, r, f1, prompt=prompt)
        for reader, prompt, f1 in (("memory", "qa", 0.2), ("memory", "chat", 0.3), ("mixed", None, 0.4))
        for r in (5.0, 15.0)
    ]
    rows += [row("text", f1=0.5, prompt=prompt) for prompt in ("qa", "chat")]
    (svg,) = figures("x", {"runs": [{**r, "method": r["ratio"] and "sac"} for r in rows]}).values()
    root = xml.fromstring(svg)
    assert len(points(root)) == 3 and all(p[0] < q[0] and p[1] == q[1] for p, q in points(root))
    names = ["memory (sac), qa", "memory (sac), chat", "mixed (sac)", "text, qa", "text, chat"]
    assert [t for t in texts(root) if t in names] == names


def test_long_names_have_room():
    def width(name):
        return int(xml.fromstring(chart("t", "x", "y", [Line(name, ((1.0, 1.0), (2.0, 2.0)))])).get("width"))

    assert width("x" * 21) == WIDTH and width("x" * 31) == WIDTH + 70


def test_what_cannot_be_compared_has_no_figure():
    assert figures("x", {"runs": [row("memory", 5.0), row("text")], "latency": [{"ratio": 5.0}, {"ratio": 15.0}]}) == {}
    assert figures("x", {"training": [{"loss": 1.0, "examples": 3}]}) == {}


def test_training_makes_a_loss_curve_without_repeated_steps():
    steps = [(1, 20, 5.0, None), (2, 40, 4.0, 6.0), (3, 60, 3.5, 5.5), (2, 40, 4.5, 6.5), (3, 60, 3.0, 5.0)]
    rows = [{"step": s, "examples": e, "loss": loss, **({"recall": r} if r else {})} for s, e, loss, r in steps]
    found = figures("5-train", {"training": rows})
    root = xml.fromstring(found["5-train.training.loss.svg"])
    loss, recall = points(root)
    assert len(loss) == 3 and len(recall) == 2
    assert loss[0][1] < loss[1][1] < loss[2][1] and recall[0][1] < loss[1][1]
    assert "questions seen" in texts(root)
