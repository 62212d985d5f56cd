"""Questions with conditions in them: what a SelfQueryRetriever understands, as a filter of a library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

_OPERATORS = {Operator.AND: "$and", Operator.OR: "$or"}
_COMPARATORS = {
    Comparator.EQ: "$eq",
    Comparator.NE: "$ne",
    Comparator.GT: "$gt",
    Comparator.GTE: "$gte",
    Comparator.LT: "$lt",
    Comparator.LTE: "$lte",
    Comparator.IN: "$in",
    Comparator.NIN: "$nin",
}


class SacTranslator(Visitor):
    """The `structured_query_translator` of a SelfQueryRetriever over a SacVectorStore.

    contain: a member of a list or a part of a text; like: a pattern with %, or without one a part of a text, whatever
    its case.
    """

    allowed_operators = (Operator.AND, Operator.OR, Operator.NOT)
    allowed_comparators = tuple(Comparator)

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        parts = [argument.accept(self) for argument in operation.arguments]
        if operation.operator == Operator.NOT:
            return {"$not": {"$and": parts}}
        return {_OPERATORS[operation.operator]: parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        key, value = comparison.attribute, _plain(comparison.value)
        match comparison.comparator:
            case Comparator.LIKE:
                pattern = str(value)
                return {key: {"$ilike": pattern if "%" in pattern else f"%{pattern}%"}}
            case Comparator.CONTAIN:
                return {key: {"$contains": value}}
        return {key: {_COMPARATORS[comparison.comparator]: value}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        found = structured_query.filter
        return structured_query.query, {} if found is None else {"filter": found.accept(self)}


def _plain(value: Any) -> Any:
    """A value; of a date as LangChain's parser writes it, {"date": "2024-05-01", "type": "date"}, the text."""
    if isinstance(value, Mapping) and value.get("type") in ("date", "datetime"):
        return value[value["type"]]
    return value
