"""How much memory one long text file takes while it is indexed, above what the loaded model takes.

`PYTHONPATH=. python scripts/index_memory.py --megabytes 5` writes a file of sentences out of the sample documents,
indexes it with the default model and prints the peak of this process's memory and the number of commits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
import threading
import time
from pathlib import Path

from sac_rag import SacRag
from sac_rag.errors import DocumentError
from sac_rag.indexing import IndexReport
from sac_rag.models.kernels import bound_caches
from sac_rag.samples import documents
from sac_rag.text.readers import read
from sac_rag.text.walk import walk


def text_of(size: int) -> str:
    """Sentences of the sample documents in random order, so that no passage repeats another."""
    texts = []
    for path in walk([documents()], on_skip=lambda path, reason: None):
        try:
            texts.append(read(path).text)
        except DocumentError:
            continue
    sentences = [s.strip() for text in texts for s in text.replace("\n", " ").split(". ") if len(s) > 20]
    rng, out, length = random.Random(0), [], 0
    while length < size:
        out.append(rng.choice(sentences) + ".")
        length += len(out[-1]) + 1
    return " ".join(out)[:size]


class Enough(Exception):
    """As many commits as were asked for."""


class Peak(threading.Thread):
    """The largest resident memory of this process, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.bytes = max(self.bytes, resident())


def resident() -> int:
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(found.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--commits", type=int, help="stop after so many; the whole text is cut before the first")
    parser.add_argument("--library", help="where to keep the library (default: a temporary folder)")
    args = parser.parse_args()
    bound_caches()  # as `sac index` does
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.txt"
        path.write_text(text_of(int(args.megabytes * 1e6) - 16))
        with SacRag.open(args.library or Path(folder) / "a.lib", create=True) as rag:
            rag.put([])
            loaded = resident()
            peak, began = Peak(), time.monotonic()
            peak.start()

            def enough(report: IndexReport) -> None:
                if args.commits and rag.library.head.generation >= args.commits:
                    raise Enough

            with contextlib.suppress(Enough):
                rag.add(path, listen=enough)
            peak.over.set()
            report = rag.report
            row = {
                "characters": path.stat().st_size,
                "skipped": [s.reason for s in report.skipped],
                "passages": report.passages,
                "tokens": report.tokens,
                "commits": rag.library.head.generation,
                "seconds": round(time.monotonic() - began, 1),
                "model_mib": loaded >> 20,
                "peak_above_model_mib": (peak.bytes - loaded) >> 20,
            }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
