"""How libraries are named: a folder or URL, or several of them with commas between."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sac_rag.errors import ConfigError

SEPARATOR = ","
"""Between the places of libraries that are named together."""


def places_of(library: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The places that are named: one, several, or several in one text with commas between them. A folder whose own
    name has a comma is one. Raises ConfigError for none, and for one that is named twice."""
    if isinstance(library, str | os.PathLike):
        text = os.fspath(library)
        one = SEPARATOR not in text or "\0" in text or os.path.lexists(text)
        found = [text] if one else text.split(SEPARATOR)
    else:
        found = [os.fspath(place) for place in library]
    if not found or (len(found) > 1 and not all(found)):
        raise ConfigError(f"library is {library!r}; name one, or several with a comma between them")
    if any("\0" in place for place in found):
        raise ConfigError(f"library is {library!r}, and holds NUL, which no name does: name another")
    real = [place if "://" in place else os.path.realpath(place) for place in found]
    if twice := [place for at, place in zip(real, found, strict=True) if real.count(at) > 1]:
        raise ConfigError(f"library {twice[0]} is named twice: name it once")
    return found
