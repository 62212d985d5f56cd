"""What this machine could do at best: measured bandwidth and arithmetic, and the seconds that a task needs at least."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from sac_rag.compress.backbone import Backbone

UNITS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2")
"""Flags of x86 CPUs that decide which kernels run."""
SIZE, STREAM = 1024, 64 << 20
"""Rows of the square matrices that are multiplied, and bytes that are copied."""


@dataclass(frozen=True)
class Machine:
    """A machine by name, and what was measured of it at one number type and number of threads."""

    cpu: str
    units: str
    """Of `UNITS` those that it has; empty where the system does not tell. "amx_…" is a matrix unit."""
    device: str
    threads: int
    dtype: str
    bytes_per_s: float
    """Read and written, copying what no cache holds."""
    flops_per_s: float
    """Of products of square matrices."""

    def least(self, bytes_moved: float, flops: float) -> float:
        """Seconds that nothing can be faster than that moves so many bytes and computes so much."""
        return max(bytes_moved / self.bytes_per_s, flops / self.flops_per_s)


def measure(device: torch.device, dtype: torch.dtype, *, quick: bool = False, rounds: int = 5) -> Machine:
    """The best of some rounds. quick: with sizes that fit caches, for rehearsals."""
    size, stream = (SIZE // 8, STREAM // 64) if quick else (SIZE, STREAM)
    source = torch.ones(stream, dtype=torch.uint8, device=device)
    target, square = torch.empty_like(source), torch.ones(size, size, dtype=dtype, device=device)
    copied = _best(lambda: target.copy_(source), device, rounds)
    multiplied = _best(lambda: square @ square, device, rounds)
    name, units = cpu()
    return Machine(
        name if device.type == "cpu" else torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        units if device.type == "cpu" else "",
        device.type,
        torch.get_num_threads(),
        str(dtype).removeprefix("torch."),
        2 * stream / copied,
        2 * size**3 / multiplied,
    )


def cpu(path: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """(the CPU's name, those of `UNITS` that it has)."""
    try:
        told = path.read_text("utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), ""
    name = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", told, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    return name[1].strip() if name else platform.machine(), " ".join(u for u in UNITS if u in has)


@dataclass(frozen=True)
class Work:
    """What reading so many tokens behind so many slots takes at least: bytes of weights and cache, and operations."""

    bytes_moved: float
    flops: float

    @classmethod
    def of(cls, backbone: Backbone, tokens: int, slots: int = 0, *, scored: bool = True) -> Work:
        """tokens: read in one pass. slots: in a head on average, already in the cache. scored: the last token's logits
        are computed, too."""
        config, (layers, groups, dim) = backbone.config, backbone.kv_shape
        number = torch.empty(0, dtype=backbone.dtype).element_size()
        inside = backbone.numbers
        head = config.vocab_size * config.hidden_size if scored else 0
        cache = 2 * layers * groups * dim * (slots + tokens)
        heads = config.num_attention_heads * dim * layers
        attention = 4 * heads * tokens * (slots + tokens / 2)
        return cls(number * (inside + head + cache), 2 * inside * tokens + 2 * head + attention)


def _best(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    def timed() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed()
    return max(min(timed() for _ in range(rounds)), 1e-9)
