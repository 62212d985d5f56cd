"""export: what a library holds, but for numbers that follow from it, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sac_rag.library.library import Library

FIELDS = ("id", "ordinal", "start", "end", "heading", "tokens", "meta", "text")


def documents(library: Library) -> Iterator[dict[str, Any]]:
    """Each document with its passages in reading order, by uri; of a damaged library those that can be read."""
    stored = {d.uri: d for d in library.documents()}
    passages = {uri: list(group) for uri, group in groupby(library.passages(), lambda p: p.document)}
    for uri, document in stored.items():
        yield {
            "document": uri,
            "type": document.media_type,
            "meta": document.meta,
            "passages": [{name: getattr(p, name) for name in FIELDS} for p in passages.get(uri, ())],
        }
