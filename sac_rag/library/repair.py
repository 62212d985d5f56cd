"""repair: a damaged library made whole out of what is sound in it, of a kept copy of its catalog, and of what follows.

Vectors and memories follow from the text, search indexes from vectors and text. Text, names and metadata follow from
nothing: what no copy has is lost, and said to be.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from sac_rag.errors import LibraryCorrupt, LibraryError, LibraryMismatch, LibraryNotFound, MemoryInvalid
from sac_rag.foreign import parse_json, parse_object
from sac_rag.library import folder as files
from sac_rag.library import schema
from sac_rag.library.catalog import Catalog, Head
from sac_rag.library.connection import reading
from sac_rag.library.made import MadeSegment
from sac_rag.library.salvage import Row, Salvaged, salvage
from sac_rag.library.segments import Segment, SegmentInfo, Slot
from sac_rag.records import Passage

if TYPE_CHECKING:
    import numpy as np

TABLES = ("documents", "passages", "memories", "segments", "vectors")
_PARENTS = (("passages", 2, "documents"), ("memories", 0, "passages"), ("vectors", 0, "passages"))
"""(table, column, table that the column refers to)"""


@dataclass
class Remade:
    """Memories as finished segments, and vectors of shape (dim,) by passage id."""

    segments: list[MadeSegment] = field(default_factory=list)
    vectors: dict[str, np.ndarray] = field(default_factory=dict)


Remake = Callable[[Head, Sequence[Passage], Sequence[Passage]], Remade]
"""(head, passages without a memory, passages without a vector) -> both, made again from the text."""


@dataclass
class RepairReport:
    """What repair found and did."""

    problems: list[str] = field(default_factory=list)
    """As `Library.verify` says them, before."""
    memories: int = 0
    """Memories made again from text."""
    vectors: int = 0
    """Vectors made again from text."""
    taken_back: int = 0
    """Rows that came from the kept copy."""
    lost: list[str] = field(default_factory=list)
    """What cannot be had again, one line each."""
    kept: str | None = None
    """The damaged catalog, put aside in the library's folder; `gc` erases it."""


def repair(folder: Path, remake: Remake, kept_copy: Path | None = None, *, wait: float = 0.0) -> RepairReport:
    """Mend the library in a folder. remake: called only when something has to be made again. kept_copy: an older
    catalog of the same library, or a folder with one. wait: seconds to wait for another writer.

    Raises LibraryLocked, LibraryMismatch for a copy of another library, LibraryCorrupt when nothing can be read.
    """
    from sac_rag.library.library import Library

    if not os.path.lexists(folder / files.CATALOG) and not list(folder.glob("seg-*.safetensors")):
        raise LibraryNotFound(f"no library at {folder}: check the path")
    report, lock = RepairReport(), files.WriterLock(folder, wait)
    try:
        found = _read(folder, report)
        damaged = bool(report.problems)
        if kept_copy is not None:
            found = _with_copy(found, _read_copy(kept_copy), report)
        if found is None:
            raise LibraryCorrupt(
                f"nothing of {folder / files.CATALOG} can be read: name a kept copy (`sac repair --copy FILE`), or "
                "index the documents into a new library"
            )
        with files.writing(folder):
            _mend(folder, found, remake, report, damaged)
    finally:
        lock.release()
    with Library.open(folder, write=True, wait=wait) as library:  # writes what follows from the rest
        report.problems += [p for p in library.verify(deep=False) if p not in report.problems]
        if library.stale:
            with library.transaction() as tx:
                tx.rebuild = True
    return report


def _read(folder: Path, report: RepairReport) -> Salvaged | None:
    """What can be read of a library's catalog; None for nothing."""
    found: Salvaged | None = None
    try:
        with Catalog.read(folder) as disk, reading(folder):
            found = salvage(disk)
            report.problems += found.lines
            disk.check_whole()
    except LibraryNotFound:
        report.problems.append(f"{folder / files.CATALOG} is missing")
    except LibraryCorrupt as e:
        report.problems.append(str(e))
    return found


def _read_copy(path: Path) -> Salvaged:
    """The rows of a kept copy; it is read where it lies, under the name of a catalog."""
    if path.is_dir():
        path = path / files.CATALOG
    if path.name != files.CATALOG:
        import tempfile

        with tempfile.TemporaryDirectory(prefix="sac-copy-") as place:
            shutil.copyfile(path, Path(place) / files.CATALOG)
            return _read_copy(Path(place))
    with Catalog.read(path.parent) as disk, reading(path.parent):
        return salvage(disk)


def _with_copy(found: Salvaged | None, copy: Salvaged, report: RepairReport) -> Salvaged:
    """What a copy has of the rows that are damaged, and of those that others refer to; all of it where there is no
    catalog left."""
    if found is None:
        report.taken_back += sum(len(copy.rows[t]) for t in TABLES)
        return copy
    if copy.head.library != found.head.library:
        raise LibraryMismatch(
            f"the copy is of library {copy.head.library}, this one is {found.head.library}: name a copy of this one"
        )
    # A key that cannot even be looked for counts where something else speaks for it, or where nothing can.
    wanted = {table: {key for key, row in found.bad[table].items() if row is not None} for table in TABLES}
    wanted["passages"] |= found.bad["passages"].keys() & found.bad["memories"].keys() & found.bad["vectors"].keys()
    for _ in range(2):  # a passage that comes back may want its document
        for table, column, parent in _PARENTS:
            wanted[parent] |= {row[column] for row in found.rows[table].values()} - found.rows[parent].keys()
        wanted["segments"] |= {r[1] for r in found.rows["memories"].values()} - found.rows["segments"].keys()
        wanted["passages"] |= found.lost_passages()
        for table in ("memories", "vectors"):
            wanted[table] |= found.rows["passages"].keys() - found.rows[table].keys()
        for table, keys in wanted.items():
            back = {key: copy.rows[table][key] for key in keys & copy.rows[table].keys()}
            report.taken_back += len(back.keys() - found.rows[table].keys())
            found.rows[table] |= back
            for key in back:
                found.bad[table].pop(key, None)
    return found


def _mend(folder: Path, found: Salvaged, remake: Remake, report: RepairReport, damaged: bool) -> None:
    from sac_rag.library.vectors import normalise

    rows = found.rows
    lost_names = _name_documents(found, report)
    _say_lost(found, report)
    segments = _segments(folder, rows)
    sound = replace(found, rows={**rows, "segments": segments}).sound()
    state = next((row[1] for row in sound["codec_state"].values()), None)
    memories = _readable(folder, found.head, state, segments, sound["memories"])
    dim = 4 * found.head.dim
    vectors = {k: r for k, r in sound["vectors"].items() if len(r[1]) == dim}
    bare, blind = sound["passages"].keys() - memories.keys(), sound["passages"].keys() - vectors.keys()
    for uri, count in _counted(sound, bare).items():
        report.problems.append(f"document {uri!r}: {count} passages have no readable memory")
    if not (damaged or bare or blind or lost_names or segments != rows["segments"]):
        return
    made = Remade()
    if bare or blind:
        passages = {k: _passage(r, sound["documents"][r[2]][1]) for k, r in sound["passages"].items()}
        made = remake(found.head, [passages[k] for k in sorted(bare)], [passages[k] for k in sorted(blind)])
    report.memories, report.vectors = len(bare), len(blind)
    number = max([found.head.generation, *_numbers(folder)])
    keys = {row[1]: key for key, row in sound["passages"].items()}
    for segment in made.segments:
        number += 1
        os.rename(folder / segment.name, folder / files.segment_name(number))
        segments[number] = (number, segment.size, segment.start, bytes.fromhex(segment.header))
        for m in segment.memories:
            key = keys[m.passage]
            where = (key, number, m.offset, m.length, m.layout, bytes.fromhex(m.xxh3), m.anchors, m.source_len)
            memories[key] = where
    for passage, vector in made.vectors.items():
        unit = normalise(vector, found.head.dim, f"passage {passage}")
        vectors[keys[passage]] = (keys[passage], unit.astype("<f4").tobytes())
    used = {row[1] for row in memories.values()}
    tables = {
        "segments": {n: row for n, row in segments.items() if n in used},
        "documents": sound["documents"],
        "passages": sound["passages"],
        "memories": memories,
        "vectors": vectors,
    }
    head = replace(
        found.head,
        generation=number + 1,
        next_key=max([found.head.next_key, *(k + 1 for t in TABLES if t != "segments" for k in tables[t])]),
        faiss=None,
        faiss_hash=None,
        documents=len(tables["documents"]),
        passages=len(tables["passages"]),
        segments=len(tables["segments"]),
    )
    report.kept = _exchange(folder, head, tables)


def _name_documents(found: Salvaged, report: RepairReport) -> bool:
    """Give documents whose row is lost a name, so that their passages stay; whether there were any."""
    rows = found.rows
    missing = found.nameless()
    names = {row[1] for row in rows["documents"].values()}
    for key in sorted(missing):
        name = next(n for i in range(len(names) + 1) if (n := f"recovered-{key}" + f"-{i}" * (i > 0)) not in names)
        rows["documents"][key] = (key, name, "text/plain", "{}", None)
        report.lost.append(f"the name and metadata of document number {key}; its passages stand under {name!r}")
    return bool(missing)


def _say_lost(found: Salvaged, report: RepairReport) -> None:
    """Name what is lost for good; its documents are compared with their files again at the next `sac index`."""
    rows, bad, lost = found.rows, found.bad, found.lost_passages()
    for key in sorted(lost):
        row = bad["passages"].get(key)
        owner = rows["documents"].get(row[2]) if row else None
        report.lost.append(f"a passage of {owner[1]!r}" if owner else f"passage number {key}, of an unknown document")
    report.lost += [f"document number {key}, its name and its passages" for key in sorted(found.empty())]
    documents, passages = found.unknown()
    if documents or passages:
        report.lost.append(f"{documents} documents and {passages} passages of which nothing else is known")
    if lost or passages:
        rows["documents"] = {k: (*r[:4], r[4] and f"{r[4]} repaired") for k, r in rows["documents"].items()}


def _segments(folder: Path, rows: dict[str, dict[int, Row]]) -> dict[int, Row]:
    """Rows of the segments that memories lie in, made again from the file where they are damaged; those without a
    whole file are left out."""
    found = {}
    for number in sorted({row[1] for row in rows["memories"].values()}):
        with contextlib.suppress(LibraryError):
            row = rows["segments"].get(number) or _described(folder, number)
            Segment(folder, SegmentInfo(*row))
            found[number] = row
    return found


def _described(folder: Path, number: int) -> Row:
    fd, size = files.open_read(folder, files.segment_name(number))
    with os.fdopen(fd, "rb") as file:
        first = file.read(8)
        start = 8 + int.from_bytes(first, "little")
        if not 8 < start <= size:
            raise LibraryCorrupt(f"{files.segment_name(number)} has no header")
        return number, size, start, xxhash.xxh3_128_digest(first + file.read(start - 8))


def _readable(
    folder: Path, head: Head, state: bytes | None, segments: dict[int, Row], memories: dict[int, Row]
) -> dict[int, Row]:
    """Memories whose bytes are as they were written, and decode. state: what the codec was fitted to."""
    from sac_rag.library.codecs import get_codec, unpack

    codec, found = get_codec(head.codec, state), {}
    opened = {number: Segment(folder, SegmentInfo(*row)) for number, row in segments.items()}
    for key, row in memories.items():
        _, number, offset, length, layout, xxh3, anchors, source_len = row
        with contextlib.suppress(LibraryCorrupt, MemoryInvalid, KeyError, ValueError):
            data = opened[number].read(Slot(number, offset, length, xxh3))
            kv = codec.decode(unpack(data, parse_json(layout)))
            if (kv.anchors, kv.source_len) == (anchors, source_len):
                found[key] = row
    return found


def _counted(sound: dict[str, dict[int, Row]], keys: set[int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for key in sorted(keys):
        uri = sound["documents"][sound["passages"][key][2]][1]
        counts[uri] = counts.get(uri, 0) + 1
    return counts


def _passage(row: Row, uri: str) -> Passage:
    _, passage_id, _, ordinal, text, start, stop, heading, tokens, meta = row
    try:
        about = parse_object(meta)
    except ValueError as error:  # with the right checksum: it was written so
        raise LibraryCorrupt(f"metadata of a passage of {uri!r} are none ({error}): do not use this library") from None
    return Passage(passage_id, uri, ordinal, text, start, stop, heading, tokens, about)


def _numbers(folder: Path) -> list[int]:
    """Numbers of all files in the folder: none is used again."""
    return [int(m[1]) for name in os.listdir(folder) if (m := re.fullmatch(r"\w+-([0-9]{1,15})\.\w+", name, re.ASCII))]


def _exchange(folder: Path, head: Head, tables: dict[str, dict[int, Row]]) -> str | None:
    """Put a new catalog in the place of the damaged one, which is kept beside it; the name of that."""
    new, kept = folder / files.NEW_CATALOG, None
    Catalog.write_new(folder, head, {table: tables[table].values() for table in schema.COLUMNS if table in tables})
    if os.path.lexists(folder / files.CATALOG):
        kept = files.damaged_name(head.generation)
        shutil.copyfile(folder / files.CATALOG, folder / kept, follow_symlinks=False)
        os.chmod(folder / kept, 0o600)
        with contextlib.suppress(FileNotFoundError):  # it belongs to the one that goes
            os.unlink(folder / f"{files.CATALOG}-journal")
    os.rename(new, folder / files.CATALOG)
    files.sync(folder)
    return kept
