"""Search in one generation of a library: two rankings, their fusion, and what a hit reports."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sac_rag.config import check_k
from sac_rag.errors import ConfigError, LibraryCorrupt, LibraryError
from sac_rag.library.filters import fitting
from sac_rag.records import Hit, Passage

if TYPE_CHECKING:
    import numpy as np

    from sac_rag.library.view import View

RRF = 60
"""Constant of reciprocal rank fusion: a list adds 1 / (RRF + rank), ranks from 1."""
POOL = 100
"""How deep each list is read for fusion, at least."""
MODES = ("hybrid", "dense", "lexical")

Ranking: TypeAlias = list[tuple[int, float]]
"""(row key, score), best first; equal scores by passage id."""


def search(
    view: View,
    vector: np.ndarray | None,
    text: str | None,
    k: int,
    *,
    mode: str = "hybrid",
    where: Mapping[str, Any] | None = None,
    min_score: float | None = None,
    distinct: bool = False,
) -> list[Hit]:
    """See `Library.search`."""
    _check(vector, text, k, mode, min_score)
    fitting(where)  # a filter that is none is told also where nothing is stored
    if not view.head.passages:
        return []
    if vector is not None:
        from sac_rag.library.vectors import normalise

        vector = normalise(vector, view.head.dim, "the question")
    allowed = view.matching(where) if where else None
    if (audible := view.audible()) is not None:
        allowed = audible if allowed is None else allowed & audible
    if allowed is not None and not allowed:
        return []
    depth = max(POOL, 4 * k) if mode == "hybrid" else k
    everything = view.head.passages if allowed is None else len(allowed)
    while True:
        dense, lexical = _rankings(view, vector, text, depth, mode, allowed, min_score)
        best = _ranked(view, _fused(dense, lexical)) if mode == "hybrid" else dense or lexical
        if min_score is not None and best and vector is not None:
            cosines = _cosines(view, [key for key, _ in best], vector)
            best = [pair for pair in best if cosines.get(pair[0], -1.0) >= min_score]
        passages = _first(view, best, k, distinct)
        read = (mode == "lexical" or len(dense) < depth) and (mode == "dense" or len(lexical) < depth)
        if not distinct or len(passages) >= k or depth >= everything or read:
            break
        depth *= 4  # copies took places
    return _hits(view, passages, best, dense, lexical, vector, text, mode)


def _check(vector: np.ndarray | None, text: str | None, k: int, mode: str, min_score: float | None) -> None:
    if mode not in MODES:
        raise LibraryError(f"search mode is {mode!r}; use one of {', '.join(MODES)}")
    try:
        check_k(k)
    except ConfigError as error:
        raise LibraryError(str(error)) from error
    if vector is None and (mode != "lexical" or min_score is not None):
        raise LibraryError(f"{mode} search{' with min_score' * (min_score is not None)} needs the question's vector")
    if text is None and mode != "dense":
        raise LibraryError(f"{mode} search needs the question's text")


def _rankings(
    view: View,
    vector: np.ndarray | None,
    text: str | None,
    depth: int,
    mode: str,
    allowed: set[int] | None,
    min_score: float | None,
) -> tuple[Ranking, Ranking]:
    """By cosine and by BM25, each as far as the mode asks for it; all of BM25 where cosines are to cut it."""
    dense: Ranking = []
    lexical: Ranking = []
    if mode != "lexical" and vector is not None:
        dense = _ranked(view, view.vectors().search(vector, depth, allowed))[:depth]
    if mode != "dense" and text is not None:
        most = None if mode == "lexical" and min_score is not None else depth
        lexical = _ranked(view, view.lexical().search(text, most, allowed))[:most]
    return dense, lexical


def _first(view: View, ranking: Ranking, k: int, distinct: bool) -> dict[int, Passage]:
    """The first k passages of a ranking, in order; with `distinct` only the first of those with the same words."""
    found: dict[int, Passage] = {}
    seen: set[str] = set()
    for start in range(0, len(ranking), k):
        keys = [key for key, _ in ranking[start : start + k]]
        passages = view.catalog.passages_at(keys)
        for key in keys:
            words = _words(passages[key].text) if distinct else str(key)
            if words not in seen:
                seen.add(words)
                found[key] = passages[key]
            if len(found) == k:
                return found
    return found


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _hits(
    view: View,
    passages: Mapping[int, Passage],
    ranking: Ranking,
    dense: Ranking,
    lexical: Ranking,
    vector: np.ndarray | None,
    text: str | None,
    mode: str,
) -> list[Hit]:
    by_rank, by_dense, by_lexical = dict(ranking), dict(dense), dict(lexical)
    similar = _cosines(view, list(passages), vector) if vector is not None else {}
    if len(similar) < len(passages):
        most = view.lexical().most(text or "")
        similar = {key: by_lexical[key] / most for key in passages if key not in similar} | similar
    return [
        Hit(
            passage,
            min(1.0, max(0.0, similar[key])),
            dense=by_dense.get(key),
            lexical=by_lexical.get(key),
            fused=by_rank[key] if mode == "hybrid" else None,
        )
        for key, passage in passages.items()
    ]


def _cosines(view: View, keys: Sequence[int], vector: np.ndarray) -> dict[int, float]:
    """By row key; without those whose vector a damaged catalog has lost."""
    from sac_rag.library.vectors import cosines

    index = view.vectors()
    keys = index.held(keys) if view.problems else keys
    return dict(zip(keys, cosines(index.rows(keys), vector).tolist(), strict=True))


def _ranked(view: View, pairs: Ranking) -> Ranking:
    """Best first; equal scores by passage id, which does not depend on how the library came about."""
    ids = view.catalog.ids([key for key, _ in pairs])
    if len(ids) != len(pairs):
        raise LibraryCorrupt(f"{view.folder}: the index names passages that the catalog does not have")
    return sorted(pairs, key=lambda pair: (-pair[1], ids[pair[0]]))


def _fused(*rankings: Ranking) -> Ranking:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (key, _) in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (RRF + rank)
    return list(scores.items())
