"""What the recorded runs say in ten lines: speed, bytes and quality at the same settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sac_rag.evaluate.plots import Line, chart

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]

EARLIER = "Of an earlier adapter"
"""How the note of a record that is older than the shipped adapter begins its last sentence."""
LEGEND = """*5x* and the like: source tokens of a passage to the slots that a head keeps of it. *Memory*: stored keys
and values, read by the frozen model. *Text*: the same passages as text before the same model. *Full-FT*:
the model finetuned to read text. *k*: passages read. F1 is in percent. Ratios of time compare ways that
took turns in one run; seconds are of the CPU that the section names.
"""


def summary(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a line for each finding whose record is there, by the records' names, and a legend."""
    tables = {name: run["tables"] for name, run in records.items()}
    bench, scored, pool = (tables.get(name, {}) for name in ("2-bench", "6-questions", "12-passages"))
    earlier = {name for name, run in records.items() if EARLIER in run.get("note", "")}
    found = [
        *_speed(bench),
        *_bytes(bench),
        *_throughput(bench),
        *_scores(scored, "memory", " by an earlier adapter" if "6-questions" in earlier else ""),
        *_scores(tables.get("6-sentences", {}), "adapted+2", " by the reader adapter with two sentences beside memory"),
        *_passages(pool),
    ]
    return "\n".join(["## In short", "", *(f"* {line}" for line in found), "", LEGEND]) if found else ""


def picture(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """File name -> SVG: F1 out of a pool against seconds to the first token, a point for each number of passages; none
    without the records of both."""
    tables = {name: run["tables"] for name, run in records.items()}
    bench, pool = tables.get("2-bench", {}), tables.get("12-passages", {})
    seconds = {(r["way"], r["passages"]): r["first_token_s"] for r in bench.get("first_token", ())}
    stored = [r for r in bench.get("storage", ()) if r["codec"] == "transform"]
    taken = {r["ratio"]: f", {r['bytes_per_source_token']:.0f} B a token" for r in stored}
    found: dict[str, list[tuple[float, float]]] = {}
    for r in pool.get("runs", ()):
        way = f"{r['ratio']:g}x" if r.get("ratio") else "text"
        if r["set"] == "macro" and (way, r["k"]) in seconds:
            name = {"memory": "memory", "adapted": "reader adapter", "full-ft": "Full-FT"}.get(r["reader"], r["reader"])
            label = f"{name}, {way}{taken.get(r.get('ratio'), '')}"
            found.setdefault(label, []).append((seconds[way, r["k"]], 100 * r["f1"]))
    if not found:
        return {}
    lines = [Line(name, tuple(sorted(points))) for name, points in found.items()]
    ks = ", ".join(map(str, sorted({r["k"] for r in pool["runs"]})))
    title = f"Passages out of a pool (k {ks} from left to right)"
    return {"in-short.svg": chart(title, "seconds to the first token", "F1, percent", lines, log_x=True)}


def _speed(bench: Tables) -> Iterator[str]:
    rows = {(r["way"], r["passages"], r["passage_tokens"]): r for r in bench.get("first_token", ())}

    def sooner(way: str, k: int, length: int = 256) -> str:
        return f"{rows[way, k, length]['sooner']:.1f} times sooner"

    def seconds(way: str, k: int) -> str:
        return f"{rows[way, k, 256]['first_token_s']:.2f} s"

    if all((way, k, 256) in rows for way in ("text", "5x", "15x", "full-kv") for k in (1, 5, 10)):
        yield (
            f"First token at the default, five passages at 5x: {seconds('5x', 5)} instead of {seconds('text', 5)} from "
            f"text, {sooner('5x', 5)}; of one passage {sooner('5x', 1)}, of ten {sooner('5x', 10)}."
        )
        longest = f"; of ten of 510 tokens {sooner('15x', 10, 510)}" if ("15x", 10, 510) in rows else ""
        yield f"At 15x of five passages {sooner('15x', 5)}, of ten {sooner('15x', 10)}{longest}."
        times = rows["full-kv", 10, 256]["first_token_s"] / rows["5x", 10, 256]["first_token_s"]
        yield (
            f"Beside stored keys and values of every token (full-kv), ten passages at 5x: {seconds('5x', 10)} instead "
            f"of {seconds('full-kv', 10)}, {times:.1f} times sooner."
        )


def _bytes(bench: Tables) -> Iterator[str]:
    taken = {(r["ratio"], r["codec"]): f"{r['bytes_per_source_token']:.0f}" for r in bench.get("storage", ())}
    if all((ratio, codec) in taken for ratio in (5, 15) for codec in ("transform", "bf16")):
        yield (
            f"A source token takes {taken[5, 'transform']} bytes at 5x and {taken[15, 'transform']} at 15x; as bf16 "
            f"{taken[5, 'bf16']} and {taken[15, 'bf16']}."
        )


def _throughput(bench: Tables) -> Iterator[str]:
    for row in bench.get("indexing", ()):
        if row["ratio"] == 5:
            yield f"Compressing at 5x runs at {row['of_prefill']:.2f} of the speed of reading the same text once."
    for row in bench.get("serving", ()):
        if row["in_flight"] == 16:
            yield f"Sixteen questions at once, {row['passages']} passages each: {row['times']:.1f} times those of text."


def _scores(scored: Tables, reader: str, whose: str) -> Iterator[str]:
    rows = [r for r in scored.get("runs", ()) if r["set"].startswith("macro") and r["reader"] == reader]
    for name in dict.fromkeys(r["set"] for r in rows):
        told = ", ".join(
            f"{100 * r['f1']:.1f} at {r['ratio']:g}x ({100 * r['retention']:.0f} %)"
            for r in rows
            if r["set"] == name and r.get("retention")
        )
        sets = sum(r["reader"] == reader and not r["set"].startswith("macro") for r in scored["runs"])
        group = name.removeprefix("macro").strip() or f"{sets} sets"
        yield f"F1 of one context each{whose}, {group}, and its share of Full-FT's: {told}."


def _passages(pool: Tables) -> Iterator[str]:
    rows = [r for r in pool.get("runs", ()) if r["set"] == "macro"]
    if memory := [r for r in rows if r["reader"] == "memory"]:
        by_k = ", ".join(f"{100 * r['f1']:.1f} at k {r['k']}" for r in memory)
        text = "".join(
            f"; Full-FT on five texts {100 * r['f1']:.1f}" for r in rows if (r["reader"], r["k"]) == ("full-ft", 5)
        )
        yield f"F1 out of a pool of {memory[0]['passages']:,} passages at {memory[0]['ratio']:g}x: {by_k}{text}."
