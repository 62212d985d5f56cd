"""`python -m tests.reliability`: run the parts, each in a process of its own, and write docs/reliability.md.

A run that was stopped goes on where it was: counts are recorded after every piece. With --report nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from sac_rag.models.kernels import bound_caches
from tests.reliability.parts import PARTS, CannotRun
from tests.reliability.record import RECORDS, ROOT, Record, run
from tests.reliability.report import render


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--fresh", action="store_true", help="begin anew; records so far are removed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="longest time for each part")
    parser.add_argument(
        "--records", type=Path, default=RECORDS, help="folder of the counts (default: docs/reliability)"
    )
    parser.add_argument("--report", action="store_true", help="write the page out of the records, and run nothing")
    parser.add_argument("--json", action="store_true", help="print the counts of all parts as one JSON object")
    own = parser.parse_args()
    names = own.only or list(PARTS)
    if own.fresh and not own.report:
        for name in names:
            (own.records / f"{name}.json").unlink(missing_ok=True)
    if own.report:
        pass
    elif len(names) == 1:
        _run(names[0], own.records, own.seconds)
    else:
        for name in names:
            command = [sys.executable, "-m", "tests.reliability", "--only", name, "--seconds", str(own.seconds)]
            subprocess.run([*command, "--records", str(own.records)], cwd=ROOT, check=False)
    if own.records == RECORDS:
        (ROOT / "docs" / "reliability.md").write_text(render(RECORDS), "utf-8")
    found = {name: Record.read(own.records, name) for name in PARTS}
    if own.json:
        print(
            json.dumps({n: {"counts": r.counts, "goal": dict(PARTS[n].goal), "bad": r.bad} for n, r in found.items()})
        )
    return int(any(found[n].bad or found[n].missing(PARTS[n]) for n in names))


def _run(name: str, records: Path, seconds: float) -> None:
    bound_caches()  # else memory grows until a thousand kernels are kept
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: one thread, and the same bits in every run
    try:
        run(PARTS[name], records, lambda line: print(line, file=sys.stderr, flush=True), budget=seconds)
    except CannotRun as reason:
        print(f"{name}: cannot run here: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
