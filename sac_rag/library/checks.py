"""verify: does everything on disk agree, in count, id and content?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sac_rag.errors import LibraryCorrupt, LibraryError
from sac_rag.library import folder as files
from sac_rag.library import lexical_file
from sac_rag.library.catalog import Catalog
from sac_rag.library.connection import reading
from sac_rag.library.salvage import salvage
from sac_rag.library.view import View, read_faiss, stored_vectors


def problems(folder: Path, deep: bool) -> list[str]:
    """What is wrong with the newest generation on disk, one line each; empty when all is well.

    Shallow: every catalog row, SQLite's structures, counts, FAISS against stored vectors, the hash of a kept lexical
    index, sizes and ranges of segments. Deep: also every stored memory, by checksum and decoded, every segment header,
    and the lexical index against the text.
    """
    found: list[str] = []
    try:
        with Catalog.read(folder) as disk:
            try:
                with reading(folder):
                    disk.check_whole()
            except LibraryCorrupt as e:
                found.append(str(e))
            view = View.load(disk, folder)
            found += [*(salvage(disk).lines if view.problems or found else ()), *_missing(view)]
            found += [*(() if view.problems else _vectors(disk, view)), *_lexical(disk, view, deep), *_ranges(view)]
    except LibraryError as e:
        return [*found, str(e)]
    return [*found, *(_memories(view) if deep else ())]


def _missing(view: View) -> Iterator[str]:
    yield from view.missing.values()
    for uri, count in sorted(view.damaged().items() if view.missing else ()):
        yield f"document {uri!r}: {count} passages have no readable memory; `sac repair` makes them again from the text"


def _vectors(disk: Catalog, view: View) -> Iterator[str]:
    import numpy as np

    head = view.head
    stored = stored_vectors(disk, head)
    keys = stored.keys().tolist()
    if keys != [key for (key,) in disk.rows("SELECT key FROM passages ORDER BY key")]:
        yield f"{disk.where}: vectors and passages have different keys"
    if not head.passages:
        return
    if read_faiss(view.folder, head) is None:
        name = "the FAISS file" if head.faiss is None else files.faiss_name(head.faiss)
        yield f"{disk.where}: {name} is missing or damaged; searches rebuild it in memory, gc writes it again"
        return
    index = view.vectors()
    if sorted(index.keys().tolist()) != keys:
        yield f"{disk.where}: the FAISS file and the catalog have different keys"
    elif not np.array_equal(index.rows(keys), stored.rows(keys)):
        yield f"{disk.where}: the FAISS file and the catalog have different vectors"


def _lexical(disk: Catalog, view: View, deep: bool) -> Iterator[str]:
    number = view.head.changed
    if number is None or not os.path.lexists(view.folder / files.lexical_name(number)):
        return
    name = files.lexical_name(number)
    if lexical_file.is_of_other_rules(view.folder, view.head):
        return
    if lexical_file.read(view.folder, view.head, view.catalog.all_keys()) is None:
        yield f"{disk.where}: {name} is damaged; searches rebuild it in memory, gc writes it again"
    elif deep and not lexical_file.is_that_of(view.folder, view.head, view.built_lexical()):
        yield f"{disk.where}: {name} is not what the text makes; gc writes it again"


def _ranges(view: View) -> Iterator[str]:
    last: dict[int, int] = {}
    for passage, number, offset, length in view.catalog.rows(
        "SELECT passage, segment, offset, length FROM memories ORDER BY segment, offset"
    ):
        if number not in view.segments:
            continue
        info = view.segments[number].info
        if offset < last.get(number, info.start) or offset + length > info.size:
            yield f"{files.segment_name(number)}: the bytes of passage {passage} overlap others or leave the file"
        last[number] = offset + length


def _memories(view: View) -> Iterator[str]:
    for number, segment in view.segments.items():
        if not segment.header_is_intact():
            yield f"{files.segment_name(number)}: the header is damaged; stored memories do not depend on it"
    known = set(view.mute)
    for key, passage_id in view.catalog.rows(
        "SELECT p.key, p.id FROM passages p JOIN memories m ON m.passage = p.key ORDER BY p.document, p.ordinal"
    ):
        try:
            if key not in known:
                view.read([passage_id])
        except LibraryError as e:
            yield str(e)
