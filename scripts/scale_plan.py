"""What a corpus of any size takes: bytes, machines, hours of compressing, and money per million questions.

    PYTHONPATH=. python scripts/scale_plan.py --library my.lib --passages 1e6,1e8,1e9 --rate 20

Text and vectors of a passage are those of a library that is there; bytes of memories and seconds are those of the bench
that docs/results records. Machines follow from a simulation: questions arrive at random, each is searched for on every
shard of one set of shards and then answered by one core of a pool, and of both there are as few as keep 95 of 100
questions within --within.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
QUESTIONS = 20_000
"""Questions that a simulation asks, of which the first tenth is left out."""
SCANNED = 1 / 32
"""Share of the vectors that a question of an inverted file looks at."""
CODE_BYTES = 48 + 8
"""Bytes of a vector's code and key in memory, by IVF-PQ with 48 numbers."""
EXACT_WITHIN = 0.25
"""Share of --within that an exact search may take; where it would take more, the index is IVF-PQ."""


@dataclass(frozen=True)
class Units:
    """What one of each costs."""

    passage_tokens: float
    kv_bytes: float
    """Stored memory of a passage."""
    catalog_bytes: float
    """Text, places and metadata of a passage, without its vector; in memory where it is served."""
    vector_bytes: float
    lexical_bytes: float
    compress_s: float
    """Seconds of a core for a passage."""
    search_s: float
    """Seconds of a core for an exact search of a million vectors."""
    answer_s: float
    """Seconds of a core for an answer, in a batch."""


@dataclass(frozen=True)
class Machine:
    cores: int
    memory_bytes: float
    disk_bytes: float
    bandwidth: float
    """Bytes of memory that all cores read in a second."""
    price: float
    """Of an hour."""


@dataclass(frozen=True)
class Plan:
    passages: float
    index: str
    kv_bytes: float
    served_bytes: float
    """In memory, of one set of shards."""
    shards: int
    """Machines that hold the corpus once."""
    sets: int
    """How often they do."""
    answer_cores: int
    machines: int
    compress_hours: float
    """Of one core."""
    compress_price: float
    p50_s: float
    p95_s: float
    price_per_million: float
    """Of a million questions, all machines at this rate."""


def units_of(library: str, ratio: float, codec: str, search_s: float) -> Units:
    """Text, tokens and vectors of a passage from a library; memories, and seconds of a core, from the recorded bench.

    Raises ValueError for a ratio and a codec that it does not have.
    """
    from sac_rag.library.library import Library
    from sac_rag.library.opening import codec_state_of

    with Library.open(library) as opened:
        stats, dim = opened.stats(), opened.head.dim
    once = len(codec_state_of(library) or b"")  # what the codec was fitted to, however many passages there are
    each = 1 / stats.passages
    tokens = stats.source_tokens * each
    bench = json.loads((RESULTS / "2-bench.json").read_text("utf-8"))["tables"]
    threads, last = bench["machine"][0]["threads"], bench["serving"][-1]
    try:
        stored = next(r for r in bench["storage"] if (r["ratio"], r["codec"]) == (ratio, codec))
        indexing = next(r for r in bench["indexing"] if r["ratio"] == ratio)
    except StopIteration:
        raise ValueError(f"2-bench.json has no ratio {ratio:g} with codec {codec!r}") from None
    return Units(
        passage_tokens=tokens,
        kv_bytes=stored["bytes_per_source_token"] * tokens,
        catalog_bytes=(stats.catalog_bytes - once) * each - 4 * dim,
        vector_bytes=4.0 * dim,
        lexical_bytes=stats.lexical_bytes * each,
        compress_s=tokens / (indexing["compressing_per_s"] / threads),
        search_s=search_s,
        answer_s=threads / last["memory_per_s"],
    )


def queue(arrivals: np.ndarray, service: np.ndarray, servers: int) -> np.ndarray:
    """When each of a queue's customers leaves, first come first served."""
    free = [0.0] * servers
    left = np.empty(len(arrivals))
    for i, (at, takes) in enumerate(zip(arrivals.tolist(), service.tolist(), strict=True)):
        begins = max(at, heapq.heappop(free))
        left[i] = begins + takes
        heapq.heappush(free, left[i])
    return left


def latencies(rate: float, search_s: float, sets: int, answer_s: float, cores: int, seed: int = 0) -> np.ndarray:
    """Seconds from question to answer, of questions that arrive at random; answers take as long as they are long."""
    rng = np.random.default_rng(seed)
    arrivals = rng.exponential(1 / rate, QUESTIONS).cumsum()
    found = queue(arrivals, np.full(QUESTIONS, search_s), sets)
    order = found.argsort(kind="stable")
    lengths = rng.gamma(4, answer_s / 4, QUESTIONS)
    done = np.empty(QUESTIONS)
    done[order] = queue(found[order], lengths, cores)
    return (done - arrivals)[QUESTIONS // 10 :]


def plan(passages: float, rate: float, within: float, units: Units, machine: Machine) -> Plan:
    """Raises ValueError where an answer alone takes longer than it may."""
    served = passages * (units.catalog_bytes + units.lexical_bytes)
    index, held = "exact", served + passages * units.vector_bytes
    shards = _shards(passages, held, units, machine)
    search = _searching(passages / shards, units.vector_bytes, units, machine)
    if search > EXACT_WITHIN * within:
        index, held = "ivf-pq", served + passages * CODE_BYTES
        shards = _shards(passages, held, units, machine)
        search = _searching(passages / shards * SCANNED, CODE_BYTES, units, machine)
    sets, cores = _least(rate, within, search, units.answer_s)
    machines = shards * sets + math.ceil(cores / machine.cores)
    seen = latencies(rate, search, sets, units.answer_s, cores)
    return Plan(
        passages=passages,
        index=index,
        kv_bytes=passages * units.kv_bytes,
        served_bytes=held,
        shards=shards,
        sets=sets,
        answer_cores=cores,
        machines=machines,
        compress_hours=passages * units.compress_s / 3600,
        compress_price=passages * units.compress_s / 3600 / machine.cores * machine.price,
        p50_s=float(np.quantile(seen, 0.5)),
        p95_s=float(np.quantile(seen, 0.95)),
        price_per_million=machines * machine.price / (rate * 3600) * 1e6,
    )


def _searching(vectors: float, size: float, units: Units, machine: Machine) -> float:
    """Seconds in which a machine looks at so many vectors of so many bytes: its cores or its memory set the pace."""
    return max(vectors / 1e6 * units.search_s / machine.cores, vectors * size / machine.bandwidth)


def _shards(passages: float, held: float, units: Units, machine: Machine) -> int:
    """Machines that have the memory and the disk for a corpus."""
    stored = passages * (units.kv_bytes + units.catalog_bytes + units.vector_bytes + units.lexical_bytes)
    return max(1, math.ceil(held / machine.memory_bytes), math.ceil(stored / machine.disk_bytes))


def _least(rate: float, within: float, search_s: float, answer_s: float) -> tuple[int, int]:
    """Sets of shards and cores that answer: first as few as can keep up, then one more of what waits longer."""
    sets, cores = math.floor(rate * search_s) + 1, math.floor(rate * answer_s) + 1
    best = np.quantile(latencies(rate, search_s, QUESTIONS, answer_s, QUESTIONS), 0.95)
    if best > within:
        raise ValueError(f"an answer takes {best:.2f} s where nobody waits, and may take {within}: allow more")
    while np.quantile(latencies(rate, search_s, sets, answer_s, cores), 0.95) > within:
        waits = [
            np.quantile(latencies(rate, search_s, s, answer_s, c), 0.95)
            for s, c in ((sets + 1, cores), (sets, cores + 1))
        ]
        # Sets of shards are many machines, cores one sixty-fourth of one: a set comes only where cores do not help.
        if waits[1] <= waits[0] * 1.02:
            cores += 1
        else:
            sets += 1
    return sets, cores


def table(plans: Sequence[Plan]) -> str:
    """Markdown."""
    heads = ["passages", "index", "memories", "in memory", "shards", "sets", "cores that answer", "machines"]
    heads += ["core hours to compress", "price of that", "p50 s", "p95 s", "price of a million questions"]
    rows = [
        [
            f"{p.passages:,.0f}",
            p.index,
            f"{p.kv_bytes / 1e9:,.0f} GB",
            f"{p.served_bytes / 1e9:,.0f} GB",
            *map(str, (p.shards, p.sets, p.answer_cores, p.machines)),
            f"{p.compress_hours:,.0f}",
            f"{p.compress_price:,.0f}",
            f"{p.p50_s:.2f}",
            f"{p.p95_s:.2f}",
            f"{p.price_per_million:,.0f}",
        ]
        for p in plans
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", help="whose passages are taken")
    parser.add_argument("--units", type=Path, help="a JSON file of what --print-units printed, instead of a library")
    parser.add_argument("--print-units", action="store_true", help="print what one of each costs, and end")
    parser.add_argument("--ratio", type=float, default=5.0, help="of memories, with --library")
    parser.add_argument("--codec", default="transform", help="of memories, with --library")
    parser.add_argument("--search-s", type=float, default=0.15, help="core seconds to search a million vectors exactly")
    parser.add_argument("--passages", default="1e6,1e7,1e8,1e9")
    parser.add_argument("--rate", type=float, default=20.0, help="questions a second")
    parser.add_argument("--within", type=float, default=3.0, help="seconds for 95 of 100 questions")
    parser.add_argument("--cores", type=int, default=64, help="of a machine")
    parser.add_argument("--memory-gb", type=float, default=512)
    parser.add_argument("--disk-gb", type=float, default=8000)
    parser.add_argument("--bandwidth-gb", type=float, default=200, help="of memory that a machine reads in a second")
    parser.add_argument("--price", type=float, default=3.0, help="of a machine for an hour")
    args = parser.parse_args(argv)
    if args.units:
        units = Units(**json.loads(args.units.read_text("utf-8")))
    elif args.library:
        units = units_of(args.library, args.ratio, args.codec, args.search_s)
    else:
        parser.error("give --library or --units")
    if args.print_units:
        print(json.dumps(asdict(units), indent=1))
        return
    # A tenth of memory is left to the system.
    machine = Machine(args.cores, args.memory_gb * 0.9e9, args.disk_gb * 1e9, args.bandwidth_gb * 1e9, args.price)
    print(table([plan(float(n), args.rate, args.within, units, machine) for n in args.passages.split(",")]))


if __name__ == "__main__":
    main()
