"""Whole processes, as a terminal starts them: a question cold and warm, and looks into a library; where seconds go.

`python -m sac_rag.evaluate.bench --cold` prints the tables.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from sac_rag.errors import SacError
from sac_rag.warm import client

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from importlib import import_module as load; "
    "sys.exit(load('sac_cli.main').run(sys.argv[2:]))"
)
_IMPORT = re.compile(r"import time:\s*(\d+) \|\s*\d+ \| ( *)(\S+)")
PACKAGES = ("torch", "numpy", "faiss", "transformers", "tokenizers", "safetensors", "rich", "typer", "sac_rag")
"""Packages whose imports are told apart; what they import themselves is theirs where it is of the same package."""


def process(words: Sequence[str], *flags: str) -> tuple[float, str, str]:
    """Run `sac WORDS` in a process of its own: (wall seconds, standard output, standard error)."""
    # `-c` finds the shell where this process finds it; nothing else differs from the `sac` of a terminal.
    command = [sys.executable, *flags, "-c", _START, json.dumps([os.path.abspath(p) for p in sys.path]), *words]
    began = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - began
    if run.returncode:
        raise SacError(f"`sac {' '.join(words)}` ended with {run.returncode}: {run.stderr.strip()[-300:]}")
    return seconds, run.stdout, run.stderr


def processes(library: str, question: str, rounds: int) -> list[dict[str, float | str]]:
    """Medians of wall seconds of whole processes, one round after the other; the first of each is not counted.

    The library is copied, so that `sac rm` takes a document each time; a copy is made new before each.
    """
    ask = ["ask", question, "--json", "--library", library]
    spent: dict[str, list[float]] = defaultdict(list)
    made: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        document = json.loads(process(["ls", "--json", "--library", library])[1])["documents"][0]["document"]

        def removed() -> float:
            copied = str(Path(folder) / "copy.lib")
            shutil.rmtree(copied, ignore_errors=True)
            shutil.copytree(library, copied)
            return process(["rm", document, "--library", copied])[0]

        def asked(name: str, *flags: str) -> float:
            seconds, out, _ = process([*ask, *flags])
            made[name].append(json.loads(out)["timings"]["total_s"])
            return seconds

        client.stop(library, "auto", "auto")
        for _ in range(rounds + 1):
            spent["ask, cold"].append(asked("ask, cold", "--no-warm"))
            spent["ls"].append(process(["ls", "--library", library])[0])
            spent["info"].append(process(["info", "--library", library])[0])
            spent["rm"].append(removed())
        client.start(library, "auto", "auto", 600.0)
        try:
            for _ in range(rounds + 1):
                spent["ask, warm"].append(asked("ask, warm"))
        finally:
            client.stop(library, "auto", "auto")
    return [
        {
            "process": name,
            "seconds": median(times[1:]),
            "least": min(times[1:]),
            "most": max(times[1:]),
            "of_it_the_answer": median(made[name][1:]) if name in made else 0.0,
        }
        for name, times in sorted(spent.items())
    ]


def seconds(library: str, question: str) -> list[dict[str, float | str]]:
    """Where the seconds of one cold `sac ask` go: imports by package, and what is left; Python tells the imports,
    which makes them slower by a little."""
    whole, out, told = process(["ask", question, "--json", "--no-warm", "--library", library], "-X", "importtime")
    found = imports(told.splitlines())
    answer = json.loads(out)["timings"]["total_s"]
    rows: list[tuple[str, float]] = [(f"import {name}", s) for name, s in found.items()]
    rows += [("the answer", answer), ("loading, and all else", whole - answer - sum(found.values()))]
    rows = [*sorted(rows, key=lambda row: -row[1]), ("whole process", whole)]
    return [{"part": name, "seconds": s} for name, s in rows]


def imports(lines: Iterable[str]) -> Mapping[str, float]:
    """Seconds by package of what `-X importtime` printed: each module's own time counts for the package that asked for
    it, so that what only torch needs is torch's."""
    spent: dict[str, float] = defaultdict(float)
    # A module is printed behind what it imports, which stands further in: from the end, each stands behind who asked.
    above: list[tuple[int, str]] = []
    for own, indent, module in reversed([m.groups() for m in map(_IMPORT.match, lines) if m]):
        depth, top = len(indent), module.partition(".")[0]
        while above and above[-1][0] >= depth:
            above.pop()
        asked = next((name for _, name in reversed(above) if name not in ("sac_rag", "other")), None)
        owner = asked or (top if top in PACKAGES else "sac_rag" if top == "sac_cli" else "other")
        above.append((depth, owner))
        spent[owner] += int(own) / 1e6
    return spent
