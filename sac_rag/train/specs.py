"""How data is named: PATH or PATH=WEIGHT, with what is to be made of the file in front. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sac_rag.errors import ConfigError

ASK = "ask:"
"""In front of a data file's path: its questions are to be asked, given their answers (`sac_rag.train.generation`)."""
CLOZE = "cloze:"
"""In front of a data file's path: ask questions made out of its texts (`sac_rag.train.cloze`), not those it has."""
CHOICE = "choice:"
"""In front of a data file's path: about half of its questions offer two answers (`sac_rag.train.choices`)."""
QUOTE = "quote:"
"""In front of a data file's path: its texts are to be quoted from memory, piece by piece."""


def kind_of(spec: str) -> tuple[str, str]:
    """`ask:`, `choice:`, `cloze:`, `quote:` or "" in front of a path, and the path."""
    for kind in (ASK, CHOICE, CLOZE, QUOTE):
        if spec.startswith(kind):
            return kind, spec.removeprefix(kind)
    return "", spec


def sources_of(specs: Sequence[str]) -> list[tuple[str, float]]:
    """Parse `PATH` or `PATH=WEIGHT` arguments; what `kind_of` finds in front stays with the path.

    What follows the last "=" is a weight when it is a number, else it belongs to the path. Raises ConfigError where
    it is neither: the path in front of it exists, the whole does not.
    """
    found = []
    for spec in specs:
        path, given, weight = spec.rpartition("=")
        try:
            found.append((path, float(weight)) if given else (spec, 1.0))
        except ValueError:
            if _exists(path) and not _exists(spec):
                raise ConfigError(f"weight {weight!r} in {spec!r} is not a number; write PATH or PATH=WEIGHT") from None
            found.append((spec, 1.0))
    return found


def _exists(path: str) -> bool:
    return os.path.exists(kind_of(path)[1])
