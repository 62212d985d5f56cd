"""What a library measures, in counts and bytes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from sac_rag.library import folder as files
from sac_rag.library.catalog import Catalog
from sac_rag.library.view import View


@dataclass(frozen=True)
class SegmentUse:
    """How much of a segment is still referred to: `payload` data bytes, of which `live` belong to passages."""

    number: int
    size: int
    payload: int
    live: int
    passages: int

    @property
    def dead(self) -> int:
        return self.payload - self.live


def usage(catalog: Catalog) -> list[SegmentUse]:
    """Use of each segment, oldest first."""
    return [
        SegmentUse(number, size, size - start, live, passages)
        for number, size, start, live, passages in catalog.rows(
            "SELECT s.number, s.size, s.start, coalesce(sum(m.length), 0), count(m.passage) "
            "FROM segments s LEFT JOIN memories m ON m.segment = s.number GROUP BY s.number ORDER BY s.number"
        )
    ]


@dataclass(frozen=True)
class Stats:
    """Sizes of a library, in counts and bytes."""

    generation: int
    codec: str
    documents: int
    passages: int
    anchors: int
    source_tokens: int
    """Tokens of all passages, as their memories count them."""
    kv_bytes: int
    """Stored memories in use."""
    dead_bytes: int
    """Stored memories of deleted passages, until gc."""
    catalog_bytes: int
    faiss_bytes: int
    lexical_bytes: int
    """The kept lexical index; small libraries have none."""
    total_bytes: int
    """All files."""
    segments: tuple[SegmentUse, ...]

    @property
    def bytes_per_source_token(self) -> float:
        """All files over the tokens they stand for; 0.0 for an empty library."""
        return self.total_bytes / self.source_tokens if self.source_tokens else 0.0


def measure(view: View) -> Stats:
    """Counts of a view; catalog and search indexes as they are on disk now."""
    segments = tuple(usage(view.catalog))
    anchors, tokens = view.catalog.rows("SELECT coalesce(sum(anchors), 0), coalesce(sum(source_len), 0) FROM memories")[
        0
    ]
    catalog = _size(view.folder / files.CATALOG)
    number = view.head.faiss
    faiss = 0 if number is None else _size(view.folder / files.faiss_name(number))
    changed = view.head.changed
    lexical = 0 if changed is None else _size(view.folder / files.lexical_name(changed))
    return Stats(
        generation=view.head.generation,
        codec=view.head.codec,
        documents=view.head.documents,
        passages=view.head.passages,
        anchors=anchors,
        source_tokens=tokens,
        kv_bytes=sum(use.live for use in segments),
        dead_bytes=sum(use.dead for use in segments),
        catalog_bytes=catalog,
        faiss_bytes=faiss,
        lexical_bytes=lexical,
        total_bytes=catalog + faiss + lexical + sum(use.size for use in segments),
        segments=segments,
    )


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path, follow_symlinks=False).st_size
    return 0
