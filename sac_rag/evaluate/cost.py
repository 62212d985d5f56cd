"""Seconds and peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")


@dataclass
class Cost:
    """Set when the work is over. peak_mib is None where the system does not tell."""

    seconds: float = 0.0
    peak_mib: float | None = None


@contextlib.contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Wall time and peak: memory allocated on a CUDA device, else resident memory of this process."""
    cuda, cost = device.type == "cuda", Cost()
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # the mark of earlier work; where it cannot be lowered, it counts too
            (_PROCESS / "clear_refs").write_text("5")
    began = time.perf_counter()
    yield cost
    if cuda:
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - began
    cost.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else resident_peak()


def resident_peak() -> float | None:
    """Peak resident memory of this process in MiB."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text()):
            return int(found[1]) / 2**10
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
