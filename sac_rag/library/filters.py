"""Metadata filters: one language for every entrance, read and evaluated here alone.

A filter is a mapping, and all its entries must hold: a key with a value, a list of values (any of them), or operators;
`$and` and `$or` with a list of filters; `$not` with a filter. Dots reach into nested metadata. Where metadata is a
list, one of its members is enough.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from sac_rag.errors import ConfigError
from sac_rag.records import nfc, unicode_of

Meta: TypeAlias = Mapping[str, Any]
Fits: TypeAlias = Callable[[Meta], bool]
_Test: TypeAlias = Callable[[Any], bool]

DOCUMENT = "$document"
"""Key of a document's uri in a filter, also where its metadata has a `document` of its own, which goes before."""
VALUE_OPERATORS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$not", "$contains", "$icontains")
FILTER_OPERATORS = ("$and", "$or", "$not")
_DEEPEST = 32


def fitting(where: Meta | None) -> Fits:
    """Whether metadata (JSON values by key) fit a filter. Raises ConfigError naming an operator that is unknown.

    A missing key counts as None. True is not 1, texts are compared in NFC, and only numbers with numbers and texts with
    texts are smaller or greater. $ne, $nin and $not hold wherever $eq, $in and what is negated do not, so also where
    the key is missing.
    """
    return _filter(where or {}, 0)


def all_of(*wheres: Meta | None) -> dict[str, Any] | None:
    """A filter for what fits all of these; None when there is none."""
    given = [dict(w) for w in wheres if w]
    if len(given) < 2:
        return given[0] if given else None
    return {"$and": given}


def example(where: Meta | None) -> dict[str, Any] | None:
    """Metadata that fit a filter; None when it asks for nothing, or for more than values and lists of values."""
    options: dict[str, list[Any]] = {}
    for key, wanted in _entries(where or {}):
        given = plain(list(wanted) if _is_list(wanted) else [wanted])
        options[key] = [o for o in options.get(key, given) if any(_same(o, g) for g in given)]
        if "." in key or not options[key]:
            return None
    found = {key: left[0] for key, left in options.items()}
    return found if found and fitting(where)(found) else None


def plain(value: Any, depth: int = 0) -> Any:
    """A metadata value as JSON: what a library stores and a filter compares.

    Dates and times become ISO texts (those with a zone in UTC, so that they sort), numbers of NumPy and Decimal
    Python's, paths and UUIDs texts, tuples and sets lists, members of an Enum their values, halves of a surrogate pair
    U+FFFD. Raises ConfigError for bytes, NaN, infinities and anything else.
    """
    if depth > _DEEPEST:
        raise ConfigError(f"a value is nested deeper than {_DEEPEST} levels: make it flat")
    if isinstance(value, enum.Enum):
        return plain(value.value, depth + 1)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return unicode_of(str(value))
    if isinstance(value, float | decimal.Decimal):
        return _number(value)
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, os.PathLike) and isinstance(path := os.fspath(value), str):
        return unicode_of(path)
    if isinstance(value, Mapping):
        return {unicode_of(str(k)): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(v, depth + 1) for v in value), key=repr)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # a scalar or array of NumPy, without importing it
        return plain(value.tolist(), depth + 1)
    raise ConfigError(f"{value!r} is a {type(value).__name__}, which is no JSON: make it a str")


def _number(value: float | decimal.Decimal) -> float | int:
    number = float(value)
    if number != number or abs(number) == float("inf"):
        raise ConfigError(f"{value!r} is no number that JSON has: leave it out or make it None")
    return int(value) if isinstance(value, decimal.Decimal) and value == value.to_integral_value() else number


def _filter(where: Any, depth: int) -> Fits:
    if depth > _DEEPEST:
        raise ConfigError(f"a filter is nested deeper than {_DEEPEST} levels: write it flatter")
    if not isinstance(where, Mapping):
        raise ConfigError(f"a filter is {where!r}; give a mapping such as {{'year': {{'$gte': 2020}}}}")
    tests = [_entry(key, wanted, depth) for key, wanted in where.items()]
    return lambda meta: all(test(meta) for test in tests)


def _entry(key: Any, wanted: Any, depth: int) -> Fits:
    if key in ("$and", "$or"):
        if not _is_list(wanted) or not wanted:
            raise ConfigError(f"{key} is {wanted!r}; it needs a list of filters")
        parts = [_filter(w, depth + 1) for w in wanted]
        if key == "$and":
            return lambda meta: all(fits(meta) for fits in parts)
        return lambda meta: any(fits(meta) for fits in parts)
    if key == "$not":
        inner = _filter(wanted, depth + 1)
        return lambda meta: not inner(meta)
    if not isinstance(key, str):
        raise ConfigError(f"a filter's key is {key!r}; keys of metadata are texts")
    if key.startswith("$") and key != DOCUMENT:
        if key in VALUE_OPERATORS:
            raise ConfigError(f"{key} compares the value of a key: write {{'key': {{'{key}': …}}}}")
        raise ConfigError(f"unknown operator {key!r} in a filter; known: {', '.join(FILTER_OPERATORS)}")
    test = _test(key, wanted, depth)
    return lambda meta: test(_at(meta, key))


def _test(key: str, wanted: Any, depth: int) -> _Test:
    """What the value of a key is to be."""
    if depth > _DEEPEST:
        raise ConfigError(f"a filter is nested deeper than {_DEEPEST} levels: write it flatter")
    if isinstance(wanted, Mapping) and wanted:
        operators = [k for k in wanted if isinstance(k, str) and k.startswith("$")]
        if len(operators) == len(wanted):
            tests = [_operator(key, name, operand, depth) for name, operand in wanted.items()]
            return lambda value: all(test(value) for test in tests)
        if operators:
            raise ConfigError(f"the filter of {key!r} mixes operators and keys: {wanted!r}")
        if bare := [k for k in wanted if f"${k}" in (*VALUE_OPERATORS, *FILTER_OPERATORS)]:
            raise ConfigError(
                f"the filter of {key!r} says {bare[0]!r}: write '${bare[0]}' for the operator, or {{'$eq': {{…}}}} for "
                "metadata with such a key"
            )
    if _is_list(wanted):
        return _operator(key, "$in", wanted, depth)
    return _operator(key, "$eq", wanted, depth)


def _operator(key: str, name: str, operand: Any, depth: int) -> _Test:
    if name == "$not":
        inner = _test(key, operand, depth + 1)
        return lambda value: not inner(value)
    if name in ("$ne", "$nin"):
        holds = _operator(key, {"$ne": "$eq", "$nin": "$in"}[name], operand, depth)
        return lambda value: not holds(value)
    if name not in VALUE_OPERATORS:
        raise ConfigError(f"unknown operator {name!r} for {key!r}; known: {', '.join(VALUE_OPERATORS)}")
    try:
        one = plain(operand)
    except ConfigError as error:
        raise ConfigError(f"the filter of {key!r} cannot be compared: {error}") from error
    if name == "$eq":
        return lambda value: _equals(value, one)
    if name == "$in":
        if not _is_list(operand):
            raise ConfigError(f"$in of {key!r} is {operand!r}; it needs a list of values")
        return lambda value: any(_equals(value, option) for option in one)
    if not isinstance(one, str) and (name in ("$contains", "$icontains") or _is_no_number(one)):
        kind = "a text" if name.endswith("contains") else "a number or a text"
        raise ConfigError(f"{name} of {key!r} is {operand!r}; it needs {kind}")
    compare = _COMPARISONS[name]
    if isinstance(one, str):
        text = nfc(one)
        return lambda value: any(isinstance(v, str) and compare(nfc(v), text) for v in _members(value))
    return lambda value: any(not _is_no_number(v) and compare(v, one) for v in _members(value))


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
    "$contains": lambda a, b: b in a,
    "$icontains": lambda a, b: b.casefold() in a.casefold(),
}


def _at(meta: Meta, key: str) -> Any:
    """The value of a key; of a key with dots that is none itself, that of the nested one."""
    if key in meta:
        return meta[key]
    value: Any = meta
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _equals(value: Any, wanted: Any) -> bool:
    return _same(value, wanted) or (isinstance(value, list) and any(_same(member, wanted) for member in value))


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 is 1.0 but not True, texts in NFC."""
    if isinstance(a, str) and isinstance(b, str):
        return a == b or nfc(a) == nfc(b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _members(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else (value,)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _is_no_number(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, int | float)


def _entries(where: Meta) -> Iterable[tuple[str, Any]]:
    """Keys and values that must all hold, with those of $and, $eq and $in."""
    for key, wanted in where.items():
        if key == "$and" and _is_list(wanted):
            for part in wanted:
                yield from _entries(part)
        elif isinstance(wanted, Mapping) and len(wanted) == 1 and next(iter(wanted)) in ("$eq", "$in"):
            yield key, next(iter(wanted.values()))
        else:
            yield key, wanted
