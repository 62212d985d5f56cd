"""Running a part piece by piece, and the record of it: counts on disk after every piece, so that a run can go on."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.reliability.parts import Found, Part

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "reliability"
MOST_BAD = 50
"""Lines that are kept of what was bad."""


@dataclass
class Record:
    """What all pieces of a part did so far."""

    part: str
    pieces: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    bad: int = 0
    lines: list[str] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    """Of figures that are no counts, the largest."""
    seconds: float = 0.0
    cpu: str = ""
    date: str = ""
    sources: list[str] = field(default_factory=list)
    """Digests of the package's sources that ran, oldest first."""

    @classmethod
    def read(cls, folder: Path, part: str) -> Record:
        path = folder / f"{part}.json"
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls(part)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.part}.json"
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", "utf-8")
        temporary.replace(path)

    def add(self, found: Found, seconds: float, ran: str) -> None:
        """ran: `sources` as they were when the piece began."""
        self.pieces += 1
        for name, count in found.counts.items():  # a count of 0 is one, too
            self.counts[name] = self.counts.get(name, 0) + count
        self.bad += len(found.bad)
        self.lines = [*self.lines, *found.bad][:MOST_BAD]
        for name, value in found.measured.items():
            self.measured[name] = max(value, self.measured.get(name, value))
        self.seconds += seconds
        self.cpu, self.date = cpu(), datetime.date.today().isoformat()
        if ran not in self.sources:
            self.sources.append(ran)

    def missing(self, part: Part) -> dict[str, int]:
        """What is still to be done, by count."""
        return {name: n - self.counts.get(name, 0) for name, n in part.goal.items() if self.counts.get(name, 0) < n}


def run(part: Part, records: Path, say: Callable[[str], None], *, budget: float = float("inf")) -> Record:
    """Do pieces until the goal or the budget (seconds) is reached, and record each. What is recorded goes on."""
    piece, record, began = part.piece(), Record.read(records, part.name), time.monotonic()
    while record.missing(part) and time.monotonic() - began < budget:
        at, ran = time.monotonic(), sources()
        place = Path(tempfile.mkdtemp(prefix=f"sac-{part.name}-", dir=in_memory()))
        try:
            found = piece(place, record.pieces, False)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        record.add(found, time.monotonic() - at, ran)
        record.write(records)
        done = ", ".join(f"{record.counts.get(name, 0):,} of {n:,} {name}" for name, n in part.goal.items())
        say(f"{part.name}: piece {record.pieces} in {time.monotonic() - at:.0f} s; {done}; {record.bad} bad")
        for line in found.bad[:5]:
            say(f"{part.name}: BAD {line}")
    return record


def in_memory() -> str | None:
    """A file system in memory, where there is one: cuts are made, not waited for, and fsync is to cost nothing."""
    shared = Path("/dev/shm")
    return str(shared) if os.access(shared, os.W_OK | os.X_OK) else None


def cpu() -> str:
    """Name of the processor, and how many there are."""
    try:
        (name, *_) = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except (OSError, ValueError):
        name = platform.processor() or platform.machine()
    return name.strip()


def sources() -> str:
    """Digest of the Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "sac_rag").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
