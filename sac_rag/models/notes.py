"""What transformers makes of a model's folder, noted in the cache: it is asked once, and not imported again.

Its import alone takes longer than an answer. A note counts for the very bytes of the folder's small files and for the
versions that were asked; anything else is asked anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sac_rag import foreign
from sac_rag.config import fingerprint
from sac_rag.models.cache import cache_root, cached_hash, write_note

FORMAT = 2
"""Changes with what a note holds."""
DESCRIBING = ("*.json", "*.txt", "*.model", "*.jinja", "additional_chat_templates/*.jinja")
"""Files of a folder that say how its weights and words are read."""


@cache
def version_of(package: str) -> str:
    """The version of an installed package, which is not imported for it; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def noted(kind: str, folder: Path, ask: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What `ask` says of a model's folder, from the note of an earlier process where there is one.

    `ask` returns what JSON holds. A cache that cannot be written costs asking again.
    """
    files = sorted({path for pattern in DESCRIBING for path in folder.glob(pattern) if path.is_file()})
    key = {
        "kind": kind,
        "format": FORMAT,
        "files": {path.relative_to(folder).as_posix(): cached_hash(path) for path in files},
        "versions": [version_of("transformers"), version_of("tokenizers")],
    }
    note = cache_root() / "read" / f"{kind}-{fingerprint(key)[:32]}.json"
    try:
        return foreign.parse_object(foreign.read_text(note))
    except (OSError, ValueError):
        text = json.dumps(ask())
    write_note(note, text)
    return foreign.parse_object(text)  # as the next process will see it
