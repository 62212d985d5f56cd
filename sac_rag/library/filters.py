"""Metadata filters: one language for every entrance, read and evaluated here alone.

A filter is a mapping, and all its entries must hold: a key with a value, a list of values (any of them), or operators;
`$and` and `$or` with a list of filters; `$not` with a filter. Dots reach into nested metadata. Where metadata is a
list, one of its members is enough.

Operators compare (`$eq $ne $gt $gte $lt $lte`, `$between` two values, both included), choose (`$in $nin`, `$all` of
several members), look into texts and lists (`$contains $icontains $not_contains`: a part of a text, or a whole member
of a list), match patterns of SQL (`$like $ilike`, with `%` and `_`), and ask whether a key has a value (`$exists`).
"""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import re
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
_OF_TEXTS = ("$contains", "$icontains", "$not_contains", "$like", "$ilike")
VALUE_OPERATORS = (*"$eq $ne $gt $gte $lt $lte $between $in $nin $all $not $exists".split(), *_OF_TEXTS)
FILTER_OPERATORS = ("$and", "$or", "$not")
_OPPOSITE = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}
_ELSEWHERE = {"and": "$and", "must": "$and", "or": "$or", "should": "$or", "not": "$not", "must_not": "$not"}
"""How filters of other stores join conditions."""
_DEEPEST = 32
_LONGEST = 4096
"""Bits of a whole number."""


def fitting(where: Meta | None) -> Fits:
    """Whether metadata (JSON values by key) fit a filter. Raises ConfigError naming an operator that is unknown.

    A missing key counts as None. True is not 1, texts are compared in NFC, and only numbers with numbers and texts with
    texts are smaller or greater. $ne, $nin, $not_contains and $not hold wherever $eq, $in, $contains and what is
    negated do not, so also where the key is missing.
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
        if isinstance(value, int) and value.bit_length() > _LONGEST:
            raise ConfigError(f"a number has {value.bit_length()} bits; {_LONGEST} are the most: make it a str")
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
    ours = _ELSEWHERE.get(key.lower())
    if ours and (_is_list(wanted) or ours == "$not") and all(isinstance(w, Mapping) for w in _each(wanted)):
        raise ConfigError(
            f"a filter joins conditions by {key!r}: write '{ours}' with conditions such as {{'a': {{'$gt': 1}}}}, "
            "or {'$in': […]} for metadata with such a key"
        )
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
    if name in _OPPOSITE:
        holds = _operator(key, _OPPOSITE[name], operand, depth)
        return lambda value: not holds(value)
    if name not in VALUE_OPERATORS:
        raise ConfigError(f"unknown operator {name!r} for {key!r}; known: {', '.join(VALUE_OPERATORS)}")
    try:
        one = plain(operand)
    except ConfigError as error:
        raise ConfigError(f"the filter of {key!r} cannot be compared: {error}") from error
    if name == "$eq":
        return lambda value: _equals(value, one)
    if name in ("$in", "$all", "$between"):
        if not _is_list(operand) or (name == "$between" and len(one) != 2):
            wanted = "the least and the greatest value, in a list" if name == "$between" else "a list of values"
            raise ConfigError(f"{name} of {key!r} is {operand!r}; it needs {wanted}")
        if name == "$between":
            tests = [_compared(key, "$gte", one[0]), _compared(key, "$lte", one[1])]
            return lambda value: any(all(test(v) for test in tests) for v in _each(value))
        held = any if name == "$in" else all
        return lambda value: held(_equals(value, option) for option in one)
    if name == "$exists":
        if not isinstance(one, bool):
            raise ConfigError(f"$exists of {key!r} is {operand!r}; it needs True or False")
        return lambda value: (value is not None) == one
    if name in ("$contains", "$icontains"):
        return _containing(key, name, one)
    return _compared(key, name, one)


def _compared(key: str, name: str, one: Any) -> _Test:
    """An operator of two numbers or two texts."""
    if not isinstance(one, str) and (name in ("$like", "$ilike") or _is_no_number(one)):
        kind = "a text" if name.endswith("like") else "a number or a text"
        raise ConfigError(f"{name} of {key!r} is {one!r}; it needs {kind}")
    if name in ("$like", "$ilike"):
        matches = _pattern(nfc(one), ignore_case=name == "$ilike")
        return lambda value: any(isinstance(v, str) and matches(nfc(v)) for v in _each(value))
    compare = _COMPARISONS[name]
    if isinstance(one, str):
        text = nfc(one)
        return lambda value: any(isinstance(v, str) and compare(nfc(v), text) for v in _each(value))
    return lambda value: any(not _is_no_number(v) and compare(v, one) for v in _each(value))


def _containing(key: str, name: str, one: Any) -> _Test:
    """Whether a text has a part, or a list a member."""
    if one is None or isinstance(one, list | Mapping) or (name == "$icontains" and not isinstance(one, str)):
        kind = "a text" if name == "$icontains" else "a text, or a member of a list"
        raise ConfigError(f"{name} of {key!r} is {one!r}; it needs {kind}")
    form = (lambda text: nfc(text).casefold()) if name == "$icontains" else nfc

    def formed(value: Any) -> Any:
        return form(value) if isinstance(value, str) else value

    wanted = formed(one)

    def holds(value: Any) -> bool:
        if isinstance(value, list):
            return any(_same(formed(member), wanted) for member in value)
        return isinstance(value, str) and isinstance(wanted, str) and wanted in formed(value)

    return holds


def _pattern(pattern: str, *, ignore_case: bool) -> Callable[[str], bool]:
    """A pattern of SQL: % stands for any characters, _ for one, behind a backslash for themselves.

    Parts between two % are looked for one after the other, so that no pattern takes longer than its length times that
    of the text.
    """
    fold = str.casefold if ignore_case else str
    parts, escaped = [""], False
    for character in pattern:
        if escaped or character not in "\\%_":
            parts[-1] += re.escape(fold(character))
        elif character == "%":
            parts.append("")
        elif character == "_":
            parts[-1] += "."
        escaped = character == "\\" and not escaped
    first, *middle = (re.compile(part, re.DOTALL) for part in parts)
    last = re.compile(f"(?:{parts[-1]})\\Z", re.DOTALL) if middle else None

    def matches(text: str) -> bool:
        text = fold(text)
        found = first.match(text) if last else first.fullmatch(text)
        for part in (*middle[:-1], last) if last else ():
            found = found and part.search(text, found.end())
        return found is not None

    return matches


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
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


def _each(value: Any) -> Iterable[Any]:
    """The members of a list; of another value, itself."""
    return value if _is_list(value) else (value,)


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
