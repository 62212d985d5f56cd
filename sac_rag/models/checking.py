"""Whether a model's files still hold what they held: a part at each load, all of it on request.

A disk that returns other bytes than it was given changes neither size nor time of a file, by which hashes are kept.
"""

from __future__ import annotations

import os
import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from sac_rag.errors import HashMismatch, ModelError
from sac_rag.models import cache, hub, sources
from sac_rag.models.fingerprints import anew, weight_files
from sac_rag.models.notes import DESCRIBING
from sac_rag.models.pinned import find_pinned

SAMPLE_SECONDS = 0.03
"""How long a load looks at files: from a page cache some hundred megabytes, so that a small model is read whole."""
SAMPLE_BLOCKS = 4096
"""Most blocks that a load looks at."""


@dataclass(frozen=True)
class Checked:
    """What became of one model's check."""

    name: str
    path: Path
    files: int
    bytes: int
    problems: tuple[str, ...]


def check_sample(path: str | Path, seconds: float = SAMPLE_SECONDS) -> None:
    """Look at random blocks of a model folder's files for so long, one at least; what was never read has none.

    Raises HashMismatch naming file, place and what to do.
    """
    folder = Path(path)
    until = time.monotonic() + seconds
    known = [(file, hashes.blocks) for file in _files(folder) if (hashes := cache.noted(file)) and hashes.blocks]
    ends = list(accumulate(len(blocks) // cache.BLOCK_HASH for _, blocks in known))
    total = ends[-1] if ends else 0
    for number in random.sample(range(total), min(total, SAMPLE_BLOCKS)):
        i = bisect_right(ends, number)
        file, blocks = known[i]
        block = number - (ends[i - 1] if i else 0)
        if _block(file, block) != blocks[cache.BLOCK_HASH * block :][: cache.BLOCK_HASH]:
            raise HashMismatch(f"{_changed(file)} (from byte {block * cache.BLOCK:,} on): {_remedy(folder, file)}")
        if time.monotonic() > until:
            return


def problems(folder: Path) -> list[str]:
    """What is wrong with a model's files, read whole, a line each: against what was recorded when it was fetched or
    converted, or, of a folder of the user's own, when it was first read."""
    if (manifest := cache.read_manifest(folder)) is None:
        return [line for file in _files(folder) if (line := _unlike_before(folder, file))]
    found = []
    for name, (_, digest) in manifest.files.items():
        try:
            hashes = cache.hashes_of(folder / name)
        except OSError as error:
            found.append(f"{folder / name} cannot be read ({error.strerror}): {anew(folder, manifest)}")
            continue
        cache.remember(folder / name, hashes)  # so that loading refuses it, too
        if hashes.sha256 != digest:
            found.append(f"{folder / name} has sha256 {hashes.sha256}, expected {digest}: {anew(folder, manifest)}")
    pinned = find_pinned(manifest.name, manifest.kind)
    marks = (manifest.fingerprint, manifest.tokenizer_fingerprint)
    if pinned and folder.name.endswith(pinned.identity.sha256[:12]) and sources.marks_of(pinned) != marks:
        found.append(f"{folder / cache.MANIFEST} does not name what is pinned: {anew(folder, manifest)}")
    return found


def verify(names: Sequence[str] = ()) -> list[Checked]:
    """Read models whole and compare: those named, or all that were fetched or converted. Nothing is fetched.

    Raises ModelError for a name that is not here.
    """
    chosen = [(name, _folder(name)) for name in names] or [
        (info.name, info.path) for info in sources.list_models() if info.path.is_dir()
    ]
    checked = []
    for name, folder in chosen:
        manifest = cache.read_manifest(folder)
        files = [folder / one for one in manifest.files] if manifest else _files(folder)
        there = [file for file in files if file.is_file()]
        size = sum(file.stat().st_size for file in there)
        checked.append(Checked(name, folder, len(there), size, tuple(problems(folder))))
    return checked


def _folder(name: str) -> Path:
    if find_pinned(name):
        return sources.folder_of(name)
    if (local := Path(name).expanduser()).is_dir():
        return local
    for info in sources.list_models():
        if info.name == name:
            return info.path
    if hub.is_hub_id(name):
        return hub.fetch(name, None, local_only=True)
    raise ModelError(f"no model {name!r} is here: `sac models list` names what was fetched; a folder is named by path")


def _files(folder: Path) -> list[Path]:
    if manifest := cache.read_manifest(folder):
        return [file for name in manifest.files if (file := folder / name).is_file()]
    describing = {file for pattern in DESCRIBING for file in folder.glob(pattern) if file.is_file()}
    return weight_files(folder) + sorted(describing)


def _block(file: Path, block: int) -> bytes:
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return cache.hash_of_block(os.pread(fd, cache.BLOCK, block * cache.BLOCK))
    finally:
        os.close(fd)


def _unlike_before(folder: Path, file: Path) -> str | None:
    """A file without a manifest is known since it was first read; it is what it is then."""
    before, now = cache.noted(file), cache.hashes_of(file)
    if before is None:
        cache.remember(file, now)
    elif before != now:
        return f"{_changed(file)} (sha256 {now.sha256}, first {before.sha256}): {_remedy(folder, file)}"
    return None


def _changed(file: Path) -> str:
    return f"{file} changed while its size and time stayed, as on a failing disk"


def _remedy(folder: Path, file: Path) -> str:
    if manifest := cache.read_manifest(folder):
        return anew(folder, manifest)
    return f"copy it again from where you have it; if you changed it yourself, `touch {file}`"
