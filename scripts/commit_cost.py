"""What a small commit costs in a large library: bytes written and seconds, beside writing the FAISS file each time.

`PYTHONPATH=. python scripts/commit_cost.py --passages 100000` fills a library with random vectors and small random
memories, then commits 50 passages at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.library import transaction
from sac_rag.library.library import Library
from sac_rag.records import Document, Passage

WORDS = [f"word{i}" for i in range(5000)]


def documents(first: int, count: int, each: int, rng: np.random.Generator) -> Iterator[tuple[Document, list[Passage]]]:
    for n in range(first, first + count):
        texts = [" ".join(rng.choice(WORDS, size=40)) for _ in range(each)]
        uri = f"doc{n}"
        passages = [Passage(f"{n:016x}{i:016x}", uri, i, text, 0, len(text), "", 40) for i, text in enumerate(texts)]
        yield Document(uri, ""), passages


def commit(library: Library, first: int, count: int, each: int, dim: int, rng: np.random.Generator) -> None:
    keys = torch.zeros(2, 1, 2, 8)
    memory = AnchorKV.even(keys, keys, torch.arange(2), 10)
    with library.transaction() as tx:
        for document, passages in documents(first, count, each, rng):
            ids = [p.id for p in passages]
            tx.put(
                document,
                passages,
                dict.fromkeys(ids, memory),
                dict(zip(ids, rng.normal(size=(each, dim)), strict=True)),
            )


def written() -> int:
    """Bytes that this process handed to the system to write."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--commits", type=int, default=9, help="commits that are measured each way")
    args = parser.parse_args()
    rng, each = np.random.default_rng(0), 50
    with tempfile.TemporaryDirectory() as folder, Library.create(Path(folder) / "a.lib", {}, dim=args.dim) as library:
        first = 0
        while first * each < args.passages:
            count = min(100, -(-(args.passages - first * each) // each))
            commit(library, first, count, each, args.dim, rng)
            first += count
        lag = transaction.INDEX_AT_ONCE
        for way, at_once in (("FAISS file each time", 10**9), ("as it is", lag)):
            transaction.INDEX_AT_ONCE = at_once
            sizes, seconds = [], []
            for _ in range(args.commits):
                before, began = written(), time.perf_counter()
                commit(library, first, 1, each, args.dim, rng)
                seconds.append(time.perf_counter() - began)
                sizes.append(written() - before)
                first += 1
            row = {
                "passages": library.head.passages,
                "way": way,
                "commits_of": each,
                "bytes": median(sizes),
                "seconds": round(median(seconds), 3),
                "faiss_bytes": os.stat(library.path / f"faiss-{library.head.faiss}.idx").st_size,
            }
            print(json.dumps(row))


if __name__ == "__main__":
    main()
