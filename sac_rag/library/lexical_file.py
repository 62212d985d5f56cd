"""The lexical index as a file, so that a large library is not read word by word again in every process.

Derived, as the FAISS file is: named by the same generation, hashed before it is parsed, and built from the catalog's
text where it is missing, stale or damaged. The writer leaves it behind when it closes; no commit refers to it.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

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


def is_kept(head: Head) -> bool:
    """Whether a generation should have a file."""
    return head.faiss is not None and head.passages >= KEPT_FROM


def read(folder: Path, head: Head) -> LexicalIndex | None:
    """The index of a generation; None unless its file is whole, and made by the same rules from the same passages."""
    from sac_rag.library.lexical import LexicalIndex

    if head.faiss is None:
        return None
    with contextlib.suppress(LibraryCorrupt, OSError):
        whole = files.read(folder, files.lexical_name(head.faiss))
        digest, data = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
        if digest == _digest(head, data):
            return LexicalIndex.parse(data)
    return None


def is_of_other_rules(folder: Path, head: Head) -> bool:
    """Whether the file of a generation is whole, but its terms were made otherwise: it is made again, not damaged."""
    from sac_rag.library.lexical import KNOWN_RULES, rules

    with contextlib.suppress(LibraryCorrupt, OSError):
        whole = files.read(folder, files.lexical_name(head.faiss or 0))
        digest, data = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
        return any(digest == _digest(head, data, by) for by in KNOWN_RULES if by != rules())
    return False


def write(folder: Path, head: Head, index: LexicalIndex) -> None:
    """Keep the index of a generation. Writer only; raises OSError."""
    if head.faiss is None:
        return
    data = index.serialize()
    files.write_durable(folder, files.lexical_name(head.faiss), [_digest(head, data), data])


def _digest(head: Head, data: bytes, by: str | None = None) -> bytes:
    """XXH3-128 over the bytes and what they must belong to; `by`: other rules than those of now."""
    from sac_rag.library.lexical import rules

    # The hash of the FAISS file stands for the passages: it covers their keys and vectors.
    belongs = [FORMAT, head.library, head.faiss, (head.faiss_hash or b"").hex(), by or rules()]
    h = xxhash.xxh3_128(json.dumps(belongs).encode())
    h.update(data)
    return h.digest()
