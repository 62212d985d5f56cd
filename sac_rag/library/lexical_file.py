"""The lexical index as a file, so that a large library is not read word by word again in every process.

Derived, as the FAISS file is: named by the generation that last changed passages, hashed before it is parsed, and built
from the catalog's text where it is missing, stale or damaged. The writer leaves it behind when it closes; no commit
refers to it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from sac_rag.errors import LibraryCorrupt
from sac_rag.library import folder as files
from sac_rag.library.catalog import Head

if TYPE_CHECKING:
    from sac_rag.library.lexical import LexicalIndex

KEPT_FROM = 1000
"""Passages from which on a file is kept: fewer are indexed in less than half a second."""
FORMAT = 1
_DIGEST_BYTES = 16
_SMALLEST, _PER_CATALOG_BYTE = 1 << 20, 8
"""Longest file that is read: a word of two bytes, which the catalog's text has, takes eight here."""


def is_kept(head: Head) -> bool:
    """Whether a generation should have a file."""
    return head.changed is not None and head.passages >= KEPT_FROM


def read(folder: Path, head: Head, keys: Sequence[int]) -> LexicalIndex | None:
    """The index of a generation; None unless its file is whole, and made by the same rules from the same passages,
    whose row keys are `keys`."""
    from sac_rag.library.lexical import LexicalIndex

    if head.changed is None:
        return None
    with contextlib.suppress(LibraryCorrupt, OSError):
        digest, data = _split(folder, head.changed)
        if digest == _digest(head, data):
            index = LexicalIndex.parse(data)
            return index if index.is_of(keys) else None
    return None


def is_of_other_rules(folder: Path, head: Head) -> bool:
    """Whether the file of a generation is whole, but its terms were made otherwise: it is made again, not damaged."""
    if head.changed is None:
        return False
    with contextlib.suppress(LibraryCorrupt, OSError):
        digest, data = _split(folder, head.changed)
        return digest in _of_before(head, data)
    return False


def is_that_of(folder: Path, head: Head, index: LexicalIndex) -> bool:
    """Whether the file of a generation holds this index, byte for byte."""
    with contextlib.suppress(LibraryCorrupt, OSError):
        data = index.serialize()
        wanted = _digest(head, data) + data
        return head.changed is not None and files.read(folder, files.lexical_name(head.changed), len(wanted)) == wanted
    return False


def forget(folder: Path, head: Head) -> None:
    """Remove the file of a generation: what comes to need one makes it anew. Writer only; raises OSError."""
    if head.changed is not None:
        (folder / files.lexical_name(head.changed)).unlink(missing_ok=True)


def write(folder: Path, head: Head, index: LexicalIndex) -> None:
    """Keep the index of a generation. Writer only; raises OSError."""
    if head.changed is None:
        return
    data = index.serialize()
    files.write_durable(folder, files.lexical_name(head.changed), [_digest(head, data), data])


def _split(folder: Path, number: int) -> tuple[bytes, bytes]:
    """Digest and content of a file; raises LibraryCorrupt, OSError."""
    most = _SMALLEST + _PER_CATALOG_BYTE * os.stat(folder / files.CATALOG, follow_symlinks=False).st_size
    whole = files.read(folder, files.lexical_name(number), most)
    return whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]


def _digest(head: Head, data: bytes) -> bytes:
    """XXH3-128 over the bytes and what they must belong to."""
    from sac_rag.bm25 import rules

    return _hash([*_passages(head), rules()], data)


def _of_before(head: Head, data: bytes) -> set[bytes]:
    """Digests that these bytes would have by other rules, or as they were made when the FAISS file covered all."""
    from sac_rag.bm25 import KNOWN_RULES, rules

    belongs = [[*_passages(head), by] for by in KNOWN_RULES if by != rules()]
    if head.changed == head.faiss:
        belongs += [[FORMAT, head.library, *_faiss(head), by] for by in KNOWN_RULES]
    return {_hash(one, data) for one in belongs}


def _passages(head: Head) -> list[Any]:
    # The hash of the FAISS file stands for the passages that it has, the generation for those that came later.
    return [FORMAT, head.library, head.changed, *_faiss(head)]


def _faiss(head: Head) -> list[Any]:
    return [head.faiss, (head.faiss_hash or b"").hex()]


def _hash(belongs: Sequence[Any], data: bytes) -> bytes:
    h = xxhash.xxh3_128(json.dumps(belongs).encode())
    h.update(data)
    return h.digest()
