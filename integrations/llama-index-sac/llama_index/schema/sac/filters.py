"""Metadata filters of LlamaIndex as filters of a library."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.schema.sac.documents import RESERVED

Condition: TypeAlias = MetadataFilter | MetadataFilters
Keep: TypeAlias = Callable[[BaseNode], bool]


def where_of(filters: MetadataFilters | None, where: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Both filters as one for `Library.search`; ValueError for what that cannot express."""
    found, rest = split(filters, reserved=())
    if rest:
        first = rest[0]
        what = f"{first.operator.value!r} on {first.key!r}" if isinstance(first, MetadataFilter) else "a nested filter"
        raise ValueError(
            f"the retriever cannot filter by {what}: use == and in, joined by and, each key once, or a "
            "SacVectorStore, which takes every filter"
        )
    given = dict(where or {})
    for key, value in found.items():
        if given.setdefault(key, value) != value:
            raise ValueError(f"where asks for {key!r} {given[key]!r} and filters for {value!r}: give one of them")
    return given


def split(
    filters: MetadataFilters | None, *, reserved: Collection[str] = RESERVED
) -> tuple[dict[str, Any], list[Condition]]:
    """What a library filters by, and the conditions that are left; all of both must hold."""
    if filters is None or not filters.filters:
        return {}, []
    if filters.condition not in (None, FilterCondition.AND) and len(filters.filters) > 1:
        return {}, [filters]
    if filters.condition == FilterCondition.NOT:
        return {}, [filters]
    where: dict[str, Any] = {}
    rest: list[Condition] = []
    for f in filters.filters:
        if isinstance(f, MetadataFilter) and f.key not in reserved and f.key not in where and _plain(f):
            where[f.key] = f.value
        else:
            rest.append(f)
    return where, rest


def _plain(f: MetadataFilter) -> bool:
    if f.operator == FilterOperator.IN:
        return isinstance(f.value, list)
    return f.operator == FilterOperator.EQ and f.value is not None and not isinstance(f.value, list)


def fits_all(conditions: Sequence[Condition]) -> Keep:
    """Whether a node meets all conditions: every operator of LlamaIndex, nested as they may be."""

    def fits(node: BaseNode) -> bool:
        metadata = {**node.metadata, **dict.fromkeys(("ref_doc_id", "doc_id", "document_id"), node.ref_doc_id)}
        return all(_meets(c, metadata) for c in conditions)

    return fits


def _meets(condition: Condition, metadata: Mapping[str, Any]) -> bool:
    if isinstance(condition, MetadataFilter):
        return build_metadata_filter_fn(lambda _: metadata, MetadataFilters(filters=[condition]))("")
    met = [_meets(c, metadata) for c in condition.filters]
    if condition.condition == FilterCondition.OR:
        return any(met)
    return not any(met) if condition.condition == FilterCondition.NOT else all(met)
