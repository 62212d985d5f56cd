"""Where adapters lie: shipped ones in `adapters/<base>/<method>/`, a user's own in any folder. Loading is elsewhere."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sac_rag.errors import AdapterError
from sac_rag.foreign import check_regular, read_bytes

SHIPPED = Path(__file__).parent / "adapters"
IN_CLONES = (("smollm2-135m-instruct", "full-ft"),)
"""Adapters that lie there in a clone of the repository alone: the package is half as large without what only
evaluation reads."""
WEIGHTS, CARD = "adapter.safetensors", "card.json"
CODEC = "codec.safetensors"
"""What the transform codec was fitted to, where it was (`sac codec`)."""
CODEC_BYTES = 256 << 20
MOST_BYTES = 4 << 30
"""Longest file of weights that is read to be named; what it may be by its card is told where it is loaded."""


def adapter_sha256(folder: Path) -> str:
    """SHA-256 (hex) of an adapter's weights. Raises AdapterError where they are no file, or longer than any."""
    try:
        check_regular(folder / WEIGHTS, MOST_BYTES)
        with open(folder / WEIGHTS, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder / WEIGHTS} cannot be read: {error}") from error


def codec_state(folder: Path | None) -> bytes | None:
    """What a fitted codec was fitted to, of an adapter's folder; None where it was not. Raises AdapterError."""
    if folder is None or not (path := folder / CODEC).exists():
        return None
    try:
        return read_bytes(path, CODEC_BYTES)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def usual_codec(folder: Path | None) -> str:
    """How libraries store memories of an adapter where nothing else is said."""
    return "transform" if folder is not None and (folder / CODEC).exists() else "bf16"


def adapter_slug(base_name: str) -> str:
    """A base model's name as a folder name: `Owner/Model` → `owner--model`."""
    return re.sub(r"[^a-z0-9._-]+", "-", base_name.lower().replace("/", "--")).strip(".-") or "model"


def shipped_adapters() -> list[tuple[str, str]]:
    """(base slug, method) of every adapter inside the package, sorted."""
    return sorted((card.parent.parent.name, card.parent.name) for card in SHIPPED.glob(f"*/*/{CARD}"))


def find_adapter(base_name: str, method: str, name_or_path: str = "default") -> Path:
    """The folder (`adapter.safetensors`, `card.json`) of an adapter.

    "default" is the one shipped for that base model and method, or lying beside those in a clone; anything else is a
    folder. Raises AdapterError naming what is missing, and where it is to be had. Whether the adapter fits the base is
    told by its card and checked where it is loaded.
    """
    if name_or_path == "default":
        folder = SHIPPED / adapter_slug(base_name) / adapter_slug(method)
        if not folder.is_dir():
            known = ", ".join(f"{base} with {name}" for base, name in shipped_adapters()) or "none"
            remedy = "train one with `sac train` and pass its folder"
            if (folder.parent.name, folder.name) in IN_CLONES:
                within = folder.relative_to(Path(__file__).parents[2]).as_posix()
                remedy = f"it lies in the repository, not in the package: clone it and pass its folder {within}, or "
                remedy += f"`sac train --recipe {method}` and pass what that makes"
            raise AdapterError(
                f"no adapter is shipped for {base_name!r} with method {method!r} (shipped: {known}): {remedy}"
            )
    else:
        folder = Path(name_or_path).expanduser()
        if not folder.is_dir():
            raise AdapterError(f"no adapter folder at {name_or_path!r}: pass a folder, or 'default'")
    missing = [file for file in (WEIGHTS, CARD) if not (folder / file).is_file()]
    if missing:
        raise AdapterError(f"{folder} is no adapter: it lacks {' and '.join(missing)}")
    return folder
