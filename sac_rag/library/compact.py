"""gc: rewrite segments that hold dead bytes, join small ones, and leave no deleted text behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sac_rag.errors import LibraryError
from sac_rag.library import folder as files
from sac_rag.library.catalog import Catalog
from sac_rag.library.sizes import SegmentUse

if TYPE_CHECKING:
    from sac_rag.library.library import Library


@dataclass(frozen=True)
class GcReport:
    """What gc did. Bytes are those of all files of the library."""

    bytes_before: int
    bytes_after: int
    segments_before: int
    segments_after: int
    passages_moved: int


def compact(library: Library, min_dead: float, segment_bytes: int, dense: str | None = None) -> GcReport:
    """See `Library.gc`. Each batch is a transaction of its own, so little extra room is needed and a kill loses one."""
    if not 0 <= min_dead < 1:
        raise LibraryError(f"min_dead is {min_dead}; it is a share of a segment's bytes, 0 <= min_dead < 1")
    before, moved = library.stats(), 0
    if dense is not None:
        from sac_rag.library.vectors import kind_of

        kind_of(dense, before.passages)  # refused before anything is moved
    for batch in _batches(before.segments, min_dead, segment_bytes):
        with library.transaction() as tx:
            moved += tx.move([use.number for use in batch])
    with library.transaction() as tx:
        # The FAISS file is written again from the catalog if anything was: it heals what it may have, and loses what
        # was removed.
        tx.rebuild = tx.rebuild or moved > 0 or tx.unindexed > 0 or dense is not None
        tx.dense = dense
    vacuum(library)
    library.forget_lexical()
    files.erase_damaged(library.path)
    after = library.stats()
    return GcReport(before.total_bytes, after.total_bytes, len(before.segments), len(after.segments), moved)


def vacuum(library: Library) -> None:
    """Write the catalog anew: deletes zero their bytes already, this also drops free pages and stale copies."""
    catalog = Catalog.connect(library.path)
    try:
        with files.writing(library.path):
            catalog.connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)  # its copy
            catalog.connection.execute("VACUUM")
    finally:
        catalog.close()


def _batches(segments: tuple[SegmentUse, ...], min_dead: float, cap: int) -> Iterator[list[SegmentUse]]:
    """Segments worth rewriting, in batches of about four segments' worth of live bytes."""
    small = {use.number for use in segments if use.live < cap // 2}
    if len(small) < 2:
        small = set()
    batch: list[SegmentUse] = []
    for use in segments:
        if use.number in small or use.dead > min_dead * use.payload:
            batch.append(use)
            if sum(u.live for u in batch) >= 4 * cap:
                yield batch
                batch = []
    if batch and (len(batch) > 1 or batch[0].dead):
        yield batch
