"""Everything that `sac bench` measures on one machine, as tables of rows; and its pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sac_rag.compress.methods import METHODS
from sac_rag.config import IndexConfig
from sac_rag.errors import ConfigError
from sac_rag.evaluate import speed
from sac_rag.evaluate.bench import storage
from sac_rag.evaluate.cost import measured
from sac_rag.evaluate.machine import Machine, measure
from sac_rag.evaluate.plots import Level, Line, chart
from sac_rag.evaluate.speed import TEXT, Listen, Row
from sac_rag.pipeline import SacRag
from sac_rag.samples import documents, questions

PARTS = ("first", "cold", "decoding", "serving", "indexing", "storage")
LONG = 510
"""Tokens of the longer passages that first tokens are measured behind."""
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Plan:
    """What is measured, on which documents."""

    config: IndexConfig
    paths: tuple[str, ...] = ()
    """Documents; none are the sample ones."""
    asked: tuple[str, ...] = ()
    """Questions; none are those of the sample documents."""
    parts: tuple[str, ...] = PARTS
    ratios: tuple[float, ...] = (2.0, 5.0, 15.0, 51.0)
    ks: tuple[int, ...] = (1, 2, 5, 10, 16)
    long_ks: tuple[int, ...] = (10,)
    """Numbers of passages of 510 tokens."""
    in_flight: tuple[int, ...] = (1, 4, 16)
    rounds: int = 7
    tokens: int = 20
    """Longest answer."""
    gguf: str | None = None
    """The same model for llama.cpp."""
    full_kv: bool = True
    quick: bool = False

    def __post_init__(self) -> None:
        if unknown := [p for p in self.parts if p not in PARTS]:
            raise ConfigError(f"no part is called {unknown[0]!r}; there are {', '.join(PARTS)}")

    def hurried(self) -> Plan:
        """A rehearsal: every part once, of as little as it needs."""
        return replace(
            self, ratios=self.ratios[:2], ks=self.ks[:2], long_ks=(), in_flight=(1, 2), rounds=1, tokens=4, quick=True
        )


def run(plan: Plan, *, device: str = "auto", dtype: str = "auto", listen: Listen | None = None) -> Tables:
    """Tables by name, in the order of `PARTS` behind "machine"; those of what is not measured are left out."""
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    asked = list(plan.asked) or [q.question for q in questions()]
    tables: Tables = {}
    with tempfile.TemporaryDirectory(prefix="sac-bench-") as folder, contextlib.ExitStack() as open_ones:

        def made(name: str, config: IndexConfig) -> SacRag:
            if listen:
                listen("indexing", name, 0, 1)
            paths = list(plan.paths) or [str(documents())]
            rag = open_ones.enter_context(SacRag.index(paths, Path(folder) / f"{name}.lib", config, **where))
            if not rag.stats().passages:
                raise ConfigError("there is no text in these documents to measure anything with")
            return rag

        rags = {f"{r:g}x": made(f"{r:g}x", replace(plan.config, ratio=r)) for r in plan.ratios}
        usual = rags.get("5x") or next(iter(rags.values()))
        engine = usual.engine
        machine = measure(engine.device, engine.dtype, quick=plan.quick)
        tables["machine"] = [_described(machine)]
        k = min(5, max(plan.ks))
        for part in plan.parts:
            with measured(engine.device) as cost:
                if part == "first":
                    tables["first_token"] = list(_first(plan, machine, rags, usual, asked, made, listen))
                elif part == "cold":
                    rounds = min(plan.rounds, 3)
                    tables["cold"] = speed.cold(usual, asked[0], k=k, tokens=plan.tokens, rounds=rounds)
                elif part == "decoding":
                    long = plan.tokens if plan.quick else 64
                    tables["decoding"] = speed.decoding(
                        usual, asked[: 2 if plan.quick else 12], machine, k=k, tokens=long, rounds=plan.rounds
                    )
                elif part == "serving":
                    tables["serving"] = speed.serving(
                        usual, asked, plan.in_flight, k=k, tokens=plan.tokens, listen=listen
                    )
                elif part == "indexing":
                    many = 4 if plan.quick else 32
                    tables["indexing"] = speed.compressing(
                        usual, plan.ratios, machine, passages=many, rounds=plan.rounds
                    )
                else:
                    tables["storage"] = storage(usual, plan.ratios, sample=4 if plan.quick else 32)
            peaks = [float(r.get(f"{way}_peak_mib", 0)) for r in tables.get(part, []) for way in ("memory", TEXT)]
            peak = max([cost.peak_mib or 0.0, *peaks])
            tables.setdefault("cost", []).append({"part": part, "seconds": cost.seconds, "peak_mib": peak})
    return tables


def _first(
    plan: Plan,
    machine: Machine,
    rags: Mapping[str, SacRag],
    usual: SacRag,
    asked: Sequence[str],
    made: Callable[[str, IndexConfig], SacRag],
    listen: Listen | None,
) -> Iterator[Row]:
    """First tokens behind passages of the usual length, then behind long ones."""
    for length, ks in ((plan.config.passage_tokens, plan.ks), (LONG, plan.long_ks)):
        if not ks:
            continue
        config, behind = replace(plan.config, passage_tokens=length), rags
        if length != plan.config.passage_tokens:
            behind = {f"{r:g}x": made(f"{r:g}x-{length}", replace(config, ratio=r)) for r in plan.ratios}
        finder = behind.get("5x") or next(iter(behind.values()))
        ways = {TEXT: speed.text(finder), **{name: speed.memory(rag) for name, rag in behind.items()}}
        if plan.full_kv and "full-kv" in METHODS:
            whole = replace(config, method="full-kv", adapter="default", option=(), ratio=1.0, codec="bf16")
            ways["full-kv"] = speed.memory(made(f"full-kv-{length}", whole))
        if plan.gguf:
            ways["llama.cpp"] = speed.llama_cpp(finder, plan.gguf)
        rows = speed.first_tokens(
            ways, finder, asked, ks, machine=machine, rounds=plan.rounds, tokens=plan.tokens, listen=listen
        )
        yield from ({"passage_tokens": length, **row} for row in rows)


def _described(machine: Machine) -> Row:
    told = dataclasses.asdict(machine)
    speeds = {"gigabytes_per_s": told.pop("bytes_per_s") / 1e9, "gigaflops": told.pop("flops_per_s") / 1e9}
    return {**told, **speeds}


def pictures(tables: Tables) -> dict[str, str]:
    """SVG documents by file name, of what there is."""
    found = {}
    rows = tables.get("first_token", [])
    short = [r for r in rows if r["passage_tokens"] == rows[0]["passage_tokens"]]
    if short:
        lines = _lines(short, "way", "passages", "first_token_s")
        found["first-token.svg"] = chart("First token", "passages", "seconds", lines, log_x=True)
    rows = tables.get("choices", [])
    stored = [r for r in rows if r["codec"]]
    if stored:
        most = max(int(r["passages"]) for r in stored)
        text = [
            Level(f"text, {most} passages", float(r["f1"])) for r in rows if not r["codec"] and r["passages"] == most
        ]
        of_most = [r for r in stored if r["passages"] == most]
        bytes_lines = _lines(of_most, "codec", "bytes_per_source_token", "f1")
        title = f"Own documents, {most} passages"
        found["f1-by-bytes.svg"] = chart(title, "bytes a source token", "F1, percent", bytes_lines, text, log_x=True)
        named = [{**r, "way": f"{r['way']} {r['codec']}".strip()} for r in rows]
        found["f1-by-passages.svg"] = chart(
            "Own documents", "passages", "F1, percent", _lines(named, "way", "passages", "f1"), log_x=True
        )
        found["f1-by-seconds.svg"] = chart(
            "Own documents", "seconds to the first token", "F1, percent",
            _lines(named, "way", "first_token_s", "f1"), log_x=True,
        )  # fmt: skip
    return found


def _lines(rows: Sequence[Row], name: str, x: str, y: str) -> list[Line]:
    """A line for each value of a column."""
    return [
        Line(value, tuple(sorted((float(r[x]), float(r[y])) for r in rows if r[name] == value)))
        for value in dict.fromkeys(str(r[name]) for r in rows)
    ]
