"""Many runs at once: a row a set, a column a reader, and nothing where columns would not tell runs apart."""

from __future__ import annotations

from typing import Any

from sac_rag.evaluate.crossed import CORNER, SHARE, crossed


def run(name: str, reader: str, f1: float, **more: Any) -> dict[str, Any]:
    ratio = more.pop("ratio", None)
    return {"set": name, "reader": reader, "ratio": ratio, "f1": f1, "em": f1 / 2, "retention": None, **more}


def test_sets_are_rows_and_readers_at_their_ratios_columns():
    rows = crossed([run(s, "memory", f, ratio=r) for s, f in (("a", 0.5), ("b", 0.25)) for r in (5.0, 15.0)])
    assert rows == [
        {CORNER: "a", "memory 5x": "50.0 / 25.0", "memory 15x": "50.0 / 25.0"},
        {CORNER: "b", "memory 5x": "25.0 / 12.5", "memory 15x": "25.0 / 12.5"},
    ]


def test_an_average_is_followed_by_its_share_of_the_ceiling():
    sets = ("a", "b", "macro in-domain")
    runs = [run(s, r, f, retention=f / 0.5) for s in sets for r, f in (("memory", 0.4), ("full-ft", 0.5))]
    rows = crossed(runs)
    assert [r[CORNER] for r in rows] == [*sets, f"macro in-domain, {SHARE}"]
    assert list(rows[-1].values())[1:] == ["80 %", "100 %"]


def test_what_was_not_run_is_an_empty_cell():
    rows = crossed([run("a", "memory", 0.5), run("a", "text", 0.5), run("b", "memory", 0.5)])
    assert [r["text"] for r in rows] == ["50.0 / 25.0", ""]


def test_adapters_prompts_and_passages_tell_columns_apart():
    def columns(**kinds: Any) -> list[str]:
        (name, values), *more = kinds.items()
        return list(crossed([run(s, "memory", 0.5, **{name: v}, **dict(more)) for s in "ab" for v in values])[0])[1:]

    assert columns(adapter=("base", "causal"), ratio=5.0) == ["base 5x", "causal 5x"]
    assert columns(prompt=("qa", "chat")) == ["memory qa", "memory chat"]
    assert columns(k=(1, 5), prompt="qa") == ["memory k 1", "memory k 5"], "what is the same everywhere says nothing"


def test_of_several_methods_each_has_columns_of_its_own():
    """Readers of text have no ratio, and keep their names; shares of the text's F1 stand below averages."""
    made = (("kvzip", None), ("sac", "trained"), ("sac", "none"))
    runs = [run(s, "text", 0.2, method=None, of_text=1.0) for s in ("a", "b", "macro")]
    runs += [
        run(s, "memory", 0.1, ratio=3.0, method=method, adapter=adapter, of_text=0.5)
        for s in ("a", "b", "macro")
        for method, adapter in made
    ]
    rows = crossed(runs)
    assert list(rows[0]) == [CORNER, "text", "kvzip 3x", "sac trained 3x", "sac none 3x"]
    assert list(rows[-1].values()) == ["macro, share of the text's F1", "100 %", "50 %", "50 %", "50 %"]


def test_nothing_where_nothing_can_be_seen_at_once():
    assert crossed([]) == []
    assert crossed([run("a", "memory", 0.5), run("a", "text", 0.5)]) == [], "one set"
    assert crossed([run("a", "memory", 0.5), run("b", "memory", 0.5)]) == [], "one column"
    same = [run(s, r, 0.5, passages=p) for s in "ab" for r in ("text", "memory") for p in (8, 9)]
    assert crossed(same) == [], "two runs in one cell"
    assert crossed([{"ratio": 5, "speedup": 2.0}] * 2) == [], "no scores"
