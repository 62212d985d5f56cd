"""Filters: each operator against a plain evaluator, values of other types, refusals by name, own keys first."""

from __future__ import annotations

import datetime
import decimal
import enum
import pathlib
import unicodedata
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from library_support import memory_of, passages_of

from sac_rag.errors import ConfigError
from sac_rag.library.filters import all_of, example, fitting, plain
from sac_rag.library.library import Library
from sac_rag.records import Document

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.0, 1.0, 1.5, -2.0]),
    st.sampled_from(["", "a", "b", "1"]),
)
METAS = st.dictionaries(st.sampled_from("xyz"), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=3)
ORDERED = st.one_of(st.integers(-2, 3), st.sampled_from(["", "a", "b", "1", 1.5]))
CONDITIONS = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.builds(lambda o, v: {o: v}, st.sampled_from(["$eq", "$ne"]), st.one_of(SCALARS, st.lists(SCALARS, max_size=2))),
    st.builds(lambda o, v: {o: v}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ORDERED),
    st.builds(lambda o, v: {o: v}, st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=3)),
    st.builds(lambda a, b: {"$gte": a, "$lt": b}, st.integers(-2, 3), st.integers(-2, 3)),
)
FILTERS = st.recursive(
    st.dictionaries(
        st.sampled_from("xyz"), st.one_of(CONDITIONS, st.builds(lambda c: {"$not": c}, CONDITIONS)), max_size=2
    ),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


def same(a: Any, b: Any) -> bool:
    """JSON equality, by spelling values out with their kind."""

    def spelled(v: Any) -> Any:
        if isinstance(v, list):
            return ("list", *map(spelled, v))
        return (type(v).__name__ if not isinstance(v, int | float) or isinstance(v, bool) else "number", v)

    return bool(spelled(a) == spelled(b))


def means(meta: dict[str, Any], where: dict[str, Any]) -> bool:
    """The oracle: what a filter says, written down case by case."""
    for key, wanted in where.items():
        if key == "$and":
            held = False not in [means(meta, w) for w in wanted]
        elif key == "$or":
            held = True in [means(meta, w) for w in wanted]
        elif key == "$not":
            held = not means(meta, wanted)
        else:
            held = says(meta.get(key), wanted)
        if not held:
            return False
    return True


def says(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        wanted = {"$in": wanted}
    elif not isinstance(wanted, dict):
        wanted = {"$eq": wanted}
    candidates = [value, *(value if isinstance(value, list) else [])]
    for operator, operand in wanted.items():
        if operator == "$not":
            held = not says(value, operand)
        elif operator in ("$eq", "$ne"):
            held = any(same(c, operand) for c in candidates) == (operator == "$eq")
        elif operator in ("$in", "$nin"):
            held = any(same(c, o) for c in candidates for o in operand) == (operator == "$in")
        else:
            held = False
            for c in value if isinstance(value, list) else [value]:
                comparable = (isinstance(c, str) and isinstance(operand, str)) or (
                    type(c) in (int, float) and type(operand) in (int, float)
                )
                if comparable:
                    less, equal = c < operand, c == operand
                    held |= {"$lt": less, "$lte": less or equal, "$gt": not less and not equal, "$gte": not less}[
                        operator
                    ]
        if not held:
            return False
    return True


@given(METAS, FILTERS)
def test_filters_mean_what_a_plain_evaluator_says(meta: dict[str, Any], where: dict[str, Any]) -> None:
    assert fitting(where)(meta) == means(meta, where)


@given(st.lists(METAS, min_size=1, max_size=4), FILTERS, FILTERS)
def test_joined_filters_and_examples(metas: list[dict[str, Any]], one: dict[str, Any], two: dict[str, Any]) -> None:
    for meta in metas:
        assert fitting(all_of(one, None, two))(meta) == (means(meta, one) and means(meta, two))
    made = example(one)
    assert made is None or means(made, one)


def test_examples_of_plain_filters() -> None:
    assert example({"tenant": "a"}) == {"tenant": "a"}
    assert example({"$and": [{"tenant": ["a", "b"]}, {"tenant": {"$in": ["b", "c"]}}]}) == {"tenant": "b"}
    assert example({"$and": [{"tenant": "b"}, {"tenant": {"$in": ["c", "b"]}, "n": {"$eq": 3}}]}) == {
        "tenant": "b",
        "n": 3,
    }
    assert example({"n": {"$gt": 3}}) is None and example({}) is None and example(None) is None


NESTED = {"who": {"team": "x", "lead": {"name": "Ann"}}, "who.flat": 1, "caf\u00e9": "men\u00fc"}


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"who.team": "x"}, True),
        ({"who.lead.name": {"$in": ["Ann", "Bob"]}}, True),
        ({"who.lead": {"name": "Ann"}}, True),
        ({"who.flat": 1}, True),  # a key that has the dot itself goes first
        ({"who.team.x": None}, True),
        ({"who": {"team": "x"}}, False),
        ({"caf\u00e9": unicodedata.normalize("NFD", "men\u00fc")}, True),
        ({"caf\u00e9": {"$icontains": "EN\u00dc"}}, True),
        ({"caf\u00e9": {"$contains": "EN"}}, False),
    ],
)
def test_nested_keys_and_texts(where: dict[str, Any], holds: bool) -> None:
    assert fitting(where)(NESTED) is holds


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (datetime.datetime(2024, 5, 1, 8, 30), "2024-05-01T08:30:00"),
        (
            datetime.datetime(2024, 5, 1, 8, tzinfo=datetime.timezone(datetime.timedelta(hours=9))),
            "2024-04-30T23:00:00+00:00",
        ),
        (datetime.date(2024, 5, 1), "2024-05-01"),
        (datetime.time(8, 30), "08:30:00"),
        (decimal.Decimal("1.25"), 1.25),
        (decimal.Decimal("3"), 3),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.5, 2.0]), [1.5, 2.0]),
        (pathlib.PurePosixPath("a/b"), "a/b"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Colour.RED, "red"),
        ({2, 1}, [1, 2]),
        ((1, ("a",)), [1, ["a"]]),
        ({"k": {1: datetime.date(2024, 1, 2)}}, {"k": {"1": "2024-01-02"}}),
    ],
)
def test_values_of_other_types_are_stored_and_compared(value: Any, stored: Any) -> None:
    assert plain(value) == stored and type(plain(value)) is type(stored)
    assert fitting({"k": {"$eq": value}})({"k": stored})


@pytest.mark.parametrize("value", [b"x", float("nan"), float("inf"), np.float32("nan"), object(), 1j])
def test_values_that_json_lacks_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError):
        plain(value)
    with pytest.raises(ConfigError, match="'k'"):
        fitting({"k": value})


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"year": {"$regex": "2.*"}}, r"'\$regex' for 'year'"),
        ({"$nor": [{"a": 1}]}, r"'\$nor'"),
        ({"$gt": 3}, r"\$gt compares"),
        ({"year": {"gte": 2020}}, r"'gte': write '\$gte'"),
        ({"year": {"$gt": 1, "x": 2}}, "mixes"),
        ({"year": {"$gt": True}}, "number or a text"),
        ({"year": {"$lt": [1]}}, "number or a text"),
        ({"year": {"$in": "2020"}}, "list of values"),
        ({"$and": []}, "list of filters"),
        ({"$or": {"a": 1}}, "list of filters"),
        ({"$not": [1]}, "a filter is"),
        ({3: 1}, "key is 3"),
        ("year = 3", "a filter is"),
    ],
)
def test_what_is_no_filter_is_refused_by_name(where: Any, named: str, library: Library) -> None:
    with pytest.raises(ConfigError, match=named):
        fitting(where)
    with pytest.raises(ConfigError, match=named):  # also where nothing is stored
        library.search(None, "x", 1, mode="lexical", where=where)


def test_a_filter_without_end_is_refused() -> None:
    where: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        where = {"$not": where}
    with pytest.raises(ConfigError, match="nested"):
        fitting(where)
    condition: Any = 1
    for _ in range(5000):
        condition = {"$not": condition}
    with pytest.raises(ConfigError, match="nested"):
        fitting({"a": condition})


def test_own_keys_go_before_those_of_the_library(library: Library) -> None:
    with library.transaction() as tx:
        for uri, meta in (("a.md", {}), ("b.md", {"document": "a.md", "start": "s", "score": 7})):
            ps = passages_of(uri, ["The river is long."])
            tx.put(
                Document(uri, "", meta=meta), ps, {p.id: memory_of(p.id) for p in ps}, {p.id: np.ones(8) for p in ps}
            )

    def uris(where: dict[str, Any]) -> list[str]:
        found = sorted(h.passage.document for h in library.search(None, "river", 5, mode="lexical", where=where))
        held = [p.document for p in library.passages() if library.holds(p.id, where)]
        assert found == sorted(held) == [d.uri for d in library.documents(where=where)]
        return found

    assert uris({"document": "a.md"}) == ["a.md", "b.md"]
    assert uris({"$document": "a.md"}) == ["a.md"]
    assert uris({"document": "b.md"}) == []
    assert uris({"$document": ["b.md"], "score": {"$gte": 7}, "start": "s"}) == ["b.md"]
    assert uris({"score": {"$ne": 7}}) == ["a.md"]


DOCUMENTS: dict[str, dict[str, Any]] = {
    "a": {"year": 2020, "tags": ["law", "tax"], "name": "Annual report 50%", "pages": [3, 40]},
    "b": {"year": 2021, "tags": ["lawful"], "name": "annual\nreview", "pages": [10]},
    "c": {"year": 2022, "tags": [], "name": "Strasse_7", "pages": []},
    "d": {"year": None, "name": "Straße 7"},
    "e": {"year": "2021-05-01", "tags": "law", "name": "", "done": False},
}


@pytest.mark.parametrize(
    ("where", "held"),
    [
        ({"year": {"$exists": True}}, "abce"),
        ({"year": {"$exists": False}}, "d"),
        ({"done": {"$exists": True}, "name": {"$exists": True}}, "e"),
        ({"year": {"$between": [2020, 2021]}}, "ab"),
        ({"year": {"$between": ("2021-01-01", "2021-12-31")}}, "e"),
        ({"year": {"$between": [2022, 2020]}}, ""),
        ({"pages": {"$between": [5, 20]}}, "b"),  # one member within, not one below and one above
        ({"tags": {"$contains": "law"}}, "ae"),
        ({"tags": {"$not_contains": "law"}}, "bcd"),
        ({"pages": {"$contains": 40}}, "a"),
        ({"year": {"$contains": 2020}}, ""),  # no list
        ({"tags": {"$icontains": "LAW"}}, "ae"),
        ({"name": {"$contains": "50%"}}, "a"),
        ({"tags": {"$all": ["law", "tax"]}}, "a"),
        ({"tags": {"$all": ["law"]}}, "ae"),
        ({"name": {"$like": "Annual%"}}, "a"),
        ({"name": {"$ilike": "annual%"}}, "ab"),
        ({"name": {"$ilike": "%R_port%"}}, "a"),
        ({"name": {"$like": "annual_review"}}, "b"),
        ({"name": {"$like": r"%50\%"}}, "a"),
        ({"name": {"$like": r"Strasse\_7"}}, "c"),
        ({"name": {"$ilike": "STRASSE_7"}}, "cd"),
        ({"name": {"$like": "%"}}, "abcde"),
        ({"name": {"$like": ""}}, "e"),
        ({"name": {"$like": "a%l%w"}}, "b"),
        ({"name": {"$like": "a%l%e"}}, ""),
        ({"tags": {"$like": "law%l"}}, "b"),
        ({"tags": {"$not": {"$like": "law%"}}}, "cd"),
    ],
)
def test_operators_of_other_stores(where: dict[str, Any], held: str) -> None:
    assert "".join(i for i, meta in DOCUMENTS.items() if fitting(where)(meta)) == held


@given(st.text("ab%_", max_size=6), st.text("ab", max_size=7))
def test_patterns_are_those_of_sql(pattern: str, text: str) -> None:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA case_sensitive_like = ON")
    (wanted,) = connection.execute("SELECT ? LIKE ?", (text, pattern)).fetchone()
    connection.close()
    assert fitting({"k": {"$like": pattern}})({"k": text}) == bool(wanted)


def test_no_pattern_takes_long() -> None:
    holds, text = fitting({"k": {"$ilike": "%a" * 2000 + "%b"}}), "a" * 20_000
    assert not holds({"k": text}) and holds({"k": text + "b"})


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ({"AND": [{"year": 2020}]}, r"by 'AND': write '\$and'"),
        ({"or": [{"year": 2020}, {"year": 2021}]}, r"by 'or': write '\$or'"),
        ({"must": [{"key": "year", "match": {"value": 2020}}]}, r"by 'must': write '\$and'"),
        ({"must_not": [{"key": "year"}]}, r"by 'must_not': write '\$not'"),
        ({"not": {"year": 2020}}, r"by 'not': write '\$not'"),
        ({"year": {"$between": [1]}}, "least and the greatest"),
        ({"year": {"$between": [1, None]}}, "number or a text"),
        ({"year": {"$exists": "yes"}}, "True or False"),
        ({"year": {"$like": 20}}, "needs a text"),
        ({"year": {"$all": "a"}}, "list of values"),
        ({"year": {"$contains": ["a"]}}, "member of a list"),
        ({"year": {"$icontains": 3}}, "needs a text"),
    ],
)
def test_how_other_stores_write_it_is_refused_with_ours(where: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        fitting(where)
    assert fitting({"or": {"$in": [{"year": 2020}]}})({"or": [{"year": 2020}]}), "metadata may have such keys"
