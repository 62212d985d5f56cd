"""Metadata filters of LlamaIndex as filters of a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from sac_rag.errors import ConfigError
from sac_rag.library.filters import all_of

_OPERATORS: dict[FilterOperator, Callable[[Any], Any]] = {
    FilterOperator.EQ: lambda v: {"$eq": v},
    FilterOperator.NE: lambda v: {"$ne": v},
    FilterOperator.GT: lambda v: {"$gt": v},
    FilterOperator.GTE: lambda v: {"$gte": v},
    FilterOperator.LT: lambda v: {"$lt": v},
    FilterOperator.LTE: lambda v: {"$lte": v},
    FilterOperator.IN: lambda v: {"$in": v},
    FilterOperator.NIN: lambda v: {"$nin": v},
    FilterOperator.ANY: lambda v: {"$in": v if isinstance(v, list) else [v]},
    FilterOperator.CONTAINS: lambda v: {"$contains": v},
    FilterOperator.TEXT_MATCH: lambda v: {"$contains": v},
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda v: {"$icontains": v},
    FilterOperator.IS_EMPTY: lambda _: {"$in": [None, "", []]},
}


def where_of(filters: MetadataFilters | None, where: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Both filters as one for `Library.search`; ConfigError for an operator that it does not have."""
    if filters is not None and not isinstance(filters, MetadataFilters):
        raise ConfigError(f"filters is a {type(filters).__name__}: give MetadataFilters, or as where a mapping")
    return all_of(_group(filters) if filters is not None else None, where)


def _group(filters: MetadataFilters) -> dict[str, Any] | None:
    parts = [_group(f) or {} if isinstance(f, MetadataFilters) else _one(f) for f in filters.filters]
    if not parts:
        return None
    if filters.condition == FilterCondition.OR:
        return {"$or": parts}
    if filters.condition == FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    return all_of(*parts)


def _one(f: MetadataFilter) -> dict[str, Any]:
    if f.operator == FilterOperator.ALL:
        values = f.value if isinstance(f.value, list) else [f.value]
        return {"$and": [{f.key: {"$eq": v}} for v in values]} if values else {}
    if f.operator not in _OPERATORS:
        raise ConfigError(
            f"a filter has the operator {f.operator!r}; a library knows {', '.join(o.value for o in _OPERATORS)}"
        )
    return {f.key: _OPERATORS[f.operator](f.value)}
