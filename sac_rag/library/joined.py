"""Several libraries read as one: one search over all of them, memories from whichever holds them.

A search is that of `sac_rag.library.search` over a view of all, so that fusion, filters and ties are those of one
library that holds every passage. Cosines are merged from the index of each. BM25 weighs a word by how often all
passages have it, which no library knows alone: one lexical index is built over all of them, at the first search that
needs it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from sac_rag.errors import ConfigError, LibraryMismatch, MemoryDamaged, PassageGone
from sac_rag.library.catalog import Head
from sac_rag.library.library import Library, StoredDocument
from sac_rag.library.opening import differing
from sac_rag.library.search import search
from sac_rag.library.sizes import Stats
from sac_rag.library.view import View
from sac_rag.places import SEPARATOR
from sac_rag.records import Hit, Passage

if TYPE_CHECKING:
    import numpy as np

    from sac_rag.compress.anchor_kv import AnchorKV
    from sac_rag.library.codecs import Codec
    from sac_rag.library.lexical import LexicalIndex

T = TypeVar("T")


def check_alike(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises LibraryMismatch naming a field and both values where two places have not the same settings."""
    (first, mine), *others = settings.items()
    for other, its in others:
        if found := differing(mine, its, f"in {first}", f"in {other}"):
            raise LibraryMismatch(
                f"{first} and {other} cannot be read as one: {'; '.join(found)}. Index the documents of one of them "
                "again with the settings of the other"
            )


class JoinedLibrary:
    """Libraries of one fingerprint and codec, for reading: what `Library` reads, of all of them together.

    A passage that several hold counts as often as they do, and questions read it once; its memory is that of the first
    where it is sound.
    Transactions are none of its: open the library that is to change.
    """

    writable = False

    def __init__(self, parts: Sequence[Library]) -> None:
        """Raises LibraryMismatch as `check_alike`, ConfigError for a path with a comma."""
        self.parts = tuple(parts)
        for part in self.parts:
            if SEPARATOR in str(part.path):
                raise ConfigError(f"the path of {part.path} has a comma, which stands between libraries: rename it")
        check_alike({str(p.path): {**p.fingerprint, "codec": p.head.codec, "dim": p.head.dim} for p in self.parts})
        self._views = _Views()

    @property
    def path(self) -> Path:
        """Of all parts, as `SacRag.open` takes it."""
        return Path(SEPARATOR.join(str(part.path) for part in self.parts))

    @property
    def writing(self) -> threading.RLock:  # type: ignore[valid-type]
        """As of `Library`."""
        return self.parts[0].writing

    def close(self) -> None:
        """Close all parts."""
        for part in self.parts:
            part.close()

    def refresh(self) -> bool:
        """Go to the newest generation of each; whether there was a newer one."""
        return any([part.refresh() for part in self.parts])

    def pinned(self) -> Self:
        """As of `Library`."""
        pinned = copy.copy(self)
        pinned.parts = tuple(part.pinned() for part in self.parts)
        return pinned

    @property
    def head(self) -> Head:
        """That of the first, with the counts of all. Its name and generation change when those of any part do."""
        heads = [part.head for part in self.parts]
        names = hashlib.sha256("\0".join(head.library for head in heads).encode()).hexdigest()
        return dataclasses.replace(
            heads[0],
            library=names[:32],
            generation=sum(head.generation for head in heads),
            documents=sum(head.documents for head in heads),
            passages=sum(head.passages for head in heads),
            segments=sum(head.segments for head in heads),
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        return self.parts[0].fingerprint

    @property
    def secret(self) -> bytes:
        """As of `Library`; another than that of any part."""
        return hashlib.sha256(b"sac-rag libraries secret\0" + b"".join(part.secret for part in self.parts)).digest()

    @property
    def stale(self) -> bool:
        return any(part.stale for part in self.parts)

    @property
    def notice(self) -> str | None:
        """What is known of the damage of any part."""
        return self.notice_of()

    def notice_of(self, where: Mapping[str, Any] | None = None) -> str | None:
        """As of `Library`."""
        found = [f"{part.path.name}: {notice}" for part in self.parts if (notice := part.notice_of(where))]
        return "; ".join(found) or None

    def codec(self) -> Codec:
        return self.parts[0].codec()

    def stats(self) -> Stats:
        """Counts and bytes of all."""
        found = [part.stats() for part in self.parts]
        whole: dict[str, Any] = {
            field.name: sum(getattr(s, field.name) for s in found)
            for field in dataclasses.fields(Stats)
            if field.name not in ("codec", "segments")
        }
        return Stats(**whole, codec=found[0].codec, segments=tuple(use for s in found for use in s.segments))

    def documents(
        self, uris: Sequence[str] | None = None, *, where: Mapping[str, Any] | None = None
    ) -> list[StoredDocument]:
        """As of `Library`, by uri; of one that several hold, each."""
        return sorted((d for part in self.parts for d in part.documents(uris, where=where)), key=lambda d: d.uri)

    def passages(self, document: str | None = None, *, where: Mapping[str, Any] | None = None) -> list[Passage]:
        """As of `Library`. Of a document that several hold, they are those of the first that holds it and where it
        fits: two texts of one name are two documents, and may be two people's."""
        found = (part.passages(document, where=where) for part in self.parts)
        if document is None:
            return [p for some in found for p in some]
        return next((some for some in found if some), [])

    def passage_ids(self, document: str) -> list[str]:
        return [i for part in self.parts for i in part.passage_ids(document)]

    def holds(self, passage_id: str, where: Mapping[str, Any] | None = None) -> bool:
        """As of `Library`: whether any part does."""
        return any(part.holds(passage_id, where) for part in self.parts)

    def get(self, ids: Sequence[str]) -> list[Passage]:
        return self._each(ids, Library.get)

    def extents(self, ids: Sequence[str]) -> list[tuple[int, int]]:
        return self._each(ids, Library.extents)

    def load(self, ids: Sequence[str]) -> list[AnchorKV]:
        try:
            return self._each(ids, Library.load)
        except MemoryDamaged:
            return [self._sound(passage_id) for passage_id in ids]

    def _sound(self, passage_id: str) -> AnchorKV:
        """The memory of a passage, of the first part where it is not damaged."""
        damage: MemoryDamaged | None = None
        for part in self.parts:
            if part.holds(passage_id):
                try:
                    return part.load([passage_id])[0]
                except MemoryDamaged as error:
                    damage = damage or error
        raise damage or self._gone(passage_id)

    def _gone(self, passage_id: str) -> PassageGone:
        return PassageGone(f"no passage {passage_id!r} in {self.path}: it was deleted, or is of another library")

    def vectors(self, ids: Sequence[str]) -> np.ndarray:
        import numpy as np

        rows = self._each(ids, lambda part, some: list(part.vectors(some)))
        return np.stack(rows) if rows else np.empty((0, self.head.dim), np.float32)

    def _each(self, ids: Sequence[str], read: Callable[[Library, Sequence[str]], Sequence[T]]) -> list[T]:
        """What is read of passages, in the order of `ids`, of each from the first part that holds it."""
        of: dict[str, int] = {}
        for passage_id in dict.fromkeys(ids):
            holder = next((n for n, part in enumerate(self.parts) if part.holds(passage_id)), None)
            if holder is None:
                raise self._gone(passage_id)
            of[passage_id] = holder
        found: dict[str, T] = {}
        for number, part in enumerate(self.parts):
            if some := [i for i, at in of.items() if at == number]:
                found.update(zip(some, read(part, some), strict=True))
        return [found[i] for i in ids]

    def search(
        self,
        vector: np.ndarray | None,
        text: str | None,
        k: int,
        *,
        mode: str = "hybrid",
        where: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        distinct: bool = False,
    ) -> list[Hit]:
        """As of `Library`: hits and scores are those of one library with the passages of all."""
        with contextlib.ExitStack() as stack:
            views = [stack.enter_context(part._still()) for part in self.parts]
            view: Any = self._views.joined(views, self.head)
            return search(view, vector, text, k, mode=mode, where=where, min_score=min_score, distinct=distinct)


AnyLibrary: TypeAlias = Library | JoinedLibrary
"""What is read: one library, or several as one. `parts` are the libraries that it is made of."""


def owners_of(
    library: AnyLibrary, uris: Sequence[str], where: Mapping[str, Any] | None = None
) -> dict[str, StoredDocument]:
    """The documents that found passages belong to, by uri. Of several of one name, in several libraries, one that fits
    the filter by which they were found, else the first."""
    found = library.documents(uris)
    fitting = library.documents(uris, where=where) if where and len(found) > len(set(uris)) else []
    return {d.uri: d for d in reversed([*fitting, *found])}


class _Views:
    """The view of all at the generations that were asked for last."""

    def __init__(self) -> None:
        self._last: _JoinedView | None = None
        self._lock = threading.Lock()

    def joined(self, views: Sequence[View], head: Head) -> _JoinedView:
        with self._lock:
            last = self._last
            if last is None or any(a is not b for a, b in zip(last.views, views, strict=True)):
                last = self._last = _JoinedView(views, head)
            return last


class _JoinedView:
    """What a search reads of a `View`, of several. A row key here is one of a view and that view's number."""

    def __init__(self, views: Sequence[View], head: Head) -> None:
        self.views, self.head = tuple(views), head
        self.folder = " and ".join(str(view.folder) for view in views)
        self.catalog = self
        self._lock = threading.Lock()
        self._lexical: LexicalIndex | None = None

    # -- row keys ----------------------------------------------------------------------------------------

    def ours(self, number: int, keys: Iterable[int]) -> list[int]:
        """Row keys of one view as they are here."""
        return [key * len(self.views) + number for key in keys]

    def split(self, keys: Iterable[int]) -> Iterator[tuple[int, View, list[int]]]:
        """(number, view, row keys there) of each view that has any of these."""
        theirs: list[list[int]] = [[] for _ in self.views]
        for key in keys:
            theirs[key % len(self.views)].append(key // len(self.views))
        for number, (view, some) in enumerate(zip(self.views, theirs, strict=True)):
            if some:
                yield number, view, some

    def read(self, keys: Iterable[int], read: Callable[[View, list[int]], Mapping[int, T]]) -> dict[int, T]:
        """What `read` gives of row keys of each view, by the keys here."""
        found: dict[int, T] = {}
        for number, view, some in self.split(keys):
            got = read(view, some)
            found.update(zip(self.ours(number, got), got.values(), strict=True))
        return found

    # -- of the catalog ----------------------------------------------------------------------------------

    def ids(self, keys: Sequence[int]) -> dict[int, str]:
        return self.read(keys, lambda view, some: view.catalog.ids(some))

    def passages_at(self, keys: Sequence[int]) -> dict[int, Passage]:
        return self.read(keys, lambda view, some: view.catalog.passages_at(some))

    # -- of the view -------------------------------------------------------------------------------------

    @property
    def problems(self) -> list[str]:
        return [problem for view in self.views for problem in view.problems]

    def matching(self, where: Mapping[str, Any]) -> set[int]:
        return {key for number, view in enumerate(self.views) for key in self.ours(number, view.matching(where))}

    def audible(self) -> set[int] | None:
        heard = [view.audible() for view in self.views]
        if all(keys is None for keys in heard):
            return None
        return {
            key
            for number, (view, keys) in enumerate(zip(self.views, heard, strict=True))
            for key in self.ours(number, view.catalog.all_keys() if keys is None else keys)
        }

    def vectors(self) -> _JoinedVectors:
        return _JoinedVectors(self)

    def lexical(self) -> LexicalIndex:
        """BM25 over the passages of all."""
        from sac_rag.library.lexical import LexicalIndex

        with self._lock:
            if self._lexical is None:
                query = "SELECT key, text FROM passages ORDER BY key"
                keys, texts = list[int](), list[str]()
                for number, view in enumerate(self.views):
                    rows = view.catalog.rows(query)
                    keys += self.ours(number, (key for key, _ in rows))
                    texts += [text for _, text in rows]
                self._lexical = LexicalIndex.build(keys, texts)
            return self._lexical


class _JoinedVectors:
    """What a search reads of a `VectorIndex`, of those of several views."""

    def __init__(self, view: _JoinedView) -> None:
        self._view = view

    def search(self, vector: np.ndarray, k: int, allowed: Collection[int] | None = None) -> list[tuple[int, float]]:
        """(key, cosine) of the best k of each view, unordered: the best k of all are among them."""
        view = self._view
        every: list[Collection[int] | None] = [None] * len(view.views)
        if allowed is not None:
            every = [()] * len(view.views)
            for number, _, keys in view.split(allowed):
                every[number] = set(keys)
        found: list[tuple[int, float]] = []
        for number, (part, some) in enumerate(zip(view.views, every, strict=True)):
            near = part.vectors().search(vector, k, some) if some is None or some else []
            found += zip(view.ours(number, (key for key, _ in near)), (score for _, score in near), strict=True)
        return found

    def rows(self, keys: Collection[int]) -> np.ndarray:
        """Stored unit vectors, float32 (n, dim), in the order of `keys`."""
        import numpy as np

        found = self._view.read(keys, lambda view, some: dict(zip(some, view.vectors().rows(some), strict=True)))
        return np.stack([found[key] for key in keys]) if found else np.empty((0, self._view.head.dim), np.float32)

    def held(self, keys: Iterable[int]) -> list[int]:
        """Those of the keys that have a vector here, in their order."""
        keys = list(keys)
        held = self._view.read(keys, lambda view, some: dict.fromkeys(view.vectors().held(some), True))
        return [key for key in keys if key in held]
