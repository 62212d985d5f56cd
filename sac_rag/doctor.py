"""What of this machine and installation bears on answers, speed and the network: looked at, never changed."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sac_rag.errors import SacError
from sac_rag.models.cache import cache_root
from sac_rag.models.notes import version_of
from sac_rag.pipeline import SacRag

PACKAGES = ("sac-rag", "torch", "transformers", "tokenizers", "safetensors", "faiss-cpu", "bm25s", "numpy")
EXTRAS = ("fastapi", "uvicorn", "mcp", "trafilatura", "sentence-transformers")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd", "bf16")
LOW_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "note" where something could be better, "bad" where something will fail."""

    what: str
    state: str
    said: str


def examine(library: str | None = None, *, device: str = "auto", dtype: str = "auto") -> Iterator[Finding]:
    """Findings, cheap ones first. library: also what it holds, and whether its model passes the gate (loads it)."""
    yield from _versions()
    yield _processor()
    yield _threads()
    yield _devices()
    yield _cache()
    yield _network()
    yield _default_model()
    if library is not None:
        yield _tried("library", lambda: _library(library))
        yield _tried("gate", lambda: _gate(library, device, dtype))


def _versions() -> Iterator[Finding]:
    python = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield Finding("python", "ok", python)
    found = {name: version_of(name) for name in (*PACKAGES, *EXTRAS)}
    missing = [name for name in PACKAGES if not found[name]]
    said = ", ".join(f"{name} {found[name]}" for name in PACKAGES if found[name])
    yield Finding(
        "packages", "bad" if missing else "ok", said + (f"; missing: {', '.join(missing)}" if missing else "")
    )
    have = ", ".join(f"{name} {found[name]}" for name in EXTRAS if found[name])
    yield Finding("extras", "ok", have or "none installed")


def _processor() -> Finding:
    flags = _flags()
    if not flags:
        return Finding("processor", "note", "its features are not told on this system; bf16 may be slow")
    bf16 = flags & {"avx512_bf16", "amx_bf16", "bf16"}
    said = ", ".join(f for f in FLAGS if f in flags)
    return Finding("processor", "ok" if bf16 else "note", said if bf16 else f"{said}; no bf16, so fp32 may be faster")


def _flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return {flag for name, _, rest in lines if name.strip() in ("flags", "Features") for flag in rest.split()} & set(
        FLAGS
    )


def _threads() -> Finding:
    import torch

    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    used, told = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    said = f"{used} of {mine} processors this process may use" + (f" (OMP_NUM_THREADS={told})" if told else "")
    if used > mine:
        return Finding("threads", "note", f"{said}: more threads than processors slow each other down")
    return Finding("threads", "ok", said)


def _devices() -> Finding:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("devices", "ok", f"CUDA: {names}")
    return Finding("devices", "ok", "CPU")


def _cache() -> Finding:
    root = cache_root()
    there = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return Finding("cache", "bad", f"{root} cannot be written: set SAC_CACHE to a folder of yours")
    said = f"{root}, {free / 1e9:.1f} GB free"
    return Finding("cache", "note" if free < LOW_BYTES else "ok", said)


def _network() -> Finding:
    names = ("SAC_OFFLINE", "SAC_WHEELHOUSE", "HF_HUB_OFFLINE")
    told = [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]
    return Finding("network", "ok", ", ".join(told) if told else "used to fetch models, and for nothing else")


def _default_model() -> Finding:
    from sac_rag.config import DEFAULT_MODEL
    from sac_rag.models.sources import path

    try:
        return Finding("default model", "ok", str(path(DEFAULT_MODEL)))
    except SacError as error:
        return Finding("default model", "note", str(error))


def _tried(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, "ok", look())
    except SacError as error:
        return Finding(what, "bad", str(error))


def _library(library: str) -> str:
    from sac_rag.library.library import Library

    with Library.open(library) as opened:
        head, notice = opened.head, opened.notice
        if notice:
            raise SacError(notice)
        return f"{head.documents} documents, {head.passages} passages, codec {head.codec}, generation {head.generation}"


def _gate(library: str, device: str, dtype: str) -> str:
    with SacRag.open(library, device=device, dtype=dtype) as rag:
        rag.check()
    return "memories read as the text that they stand for"
