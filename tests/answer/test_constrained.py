"""Answers held to a JSON schema: whole and valid whatever the model says, however short, and one row's own affair."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance", reason='tools are an extra: pip install "sac-rag[tools]"')

from sac_rag.answer import constrained
from sac_rag.answer.constrained import Call, Constraint, Grammars, Guide, checked, schema_of
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Completion, Reader, Sampling, decode
from sac_rag.answer.reply import Reply
from sac_rag.answer.service import Service
from sac_rag.errors import ConfigError
from tests.conftest import by_transformers

END = 2
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "integer", "minimum": 1800, "maximum": 2000},
        "alive": {"type": "boolean"},
        "kind": {"enum": ["poet", "painter"]},
        "works": {"type": "array", "items": {"type": "string", "minLength": 2}, "minItems": 1, "maxItems": 3},
        "home": {"anyOf": [{"$ref": "#/$defs/Home"}, {"type": "null"}]},
    },
    "required": ["name", "born", "alive", "kind", "works", "home"],
    "$defs": {"Home": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}},
}
SCHEMAS = {
    "person": PERSON,
    "number": {"type": "number"},
    "text": {"type": "string", "maxLength": 9},
    "pattern": {"type": "string", "pattern": "^[a-c]{3}-[0-9]{2}$"},
    "date": {"type": "string", "format": "date"},
    "list": {"type": "array", "items": {"type": "integer"}, "minItems": 2},
    "any object": {"type": "object"},
    "itself": {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
    "digits and commas": {"type": "array", "items": {"type": "string", "pattern": "^[0-9,]+$"}, "minItems": 2},
    "nothing": {"type": "object", "properties": {}},
}  # fmt: skip


@pytest.fixture
def reader(make_backbone: Any) -> Reader:
    return Reader(make_backbone(lora=False, initializer_range=0.3), [END])


@pytest.fixture
def grammars(reader: Reader) -> Grammars:
    return Grammars(reader.backbone.tokenizer, [END], contextlib.nullcontext)


def prompt(reader: Reader, text: str) -> Prompt:
    return Prompt((reader.backbone.tokens(text),))


def answers(
    reader: Reader, grammars: Grammars, schema: dict[str, Any], *, rows: int = 3, **how: Any
) -> list[tuple[str, Completion]]:
    """Several answers, to as many questions, as one batch."""
    sampling = Sampling(constraint=Constraint(grammars.grammar(schema)), **how)
    made = reader.generate([prompt(reader, f"Who? {n}") for n in range(rows)], sampling)
    return [(decode(reader.backbone.tokenizer, c.token_ids), c) for c in made]


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_fits_its_schema(
    reader: Reader, grammars: Grammars, schema: dict[str, Any], temperature: float
) -> None:
    for text, completion in answers(reader, grammars, schema, max_new_tokens=140, temperature=temperature):
        jsonschema.validate(json.loads(text), checked(schema))
        assert len(completion.token_ids) <= 140


def test_an_answer_that_is_cut_is_whole_all_the_same(reader: Reader, grammars: Grammars) -> None:
    shortest = grammars.grammar(PERSON).shortest
    assert shortest > 80
    for room in (shortest, shortest + 1, shortest + 2, shortest + 7, shortest + 30):
        for text, completion in answers(reader, grammars, PERSON, rows=6, max_new_tokens=room, temperature=1.0):
            jsonschema.validate(json.loads(text), checked(PERSON))
            assert len(completion.token_ids) <= room
    with pytest.raises(ConfigError, match=f"about {shortest} tokens, and {shortest - 1} are allowed"):
        answers(reader, grammars, PERSON, max_new_tokens=shortest - 1)


def test_what_a_schema_says_itself_may_be_long(reader: Reader, grammars: Grammars) -> None:
    const = {"const": "so it is " * 80}
    names = {f"number {n}": {"type": "string"} for n in range(70)}
    form = {"type": "object", "properties": names, "required": list(names)}
    assert grammars.grammar(const).shortest == len(json.dumps(const["const"])) == 722
    assert grammars.grammar(form).shortest == len(json.dumps(dict.fromkeys(names, "")))
    with pytest.raises(ConfigError, match="about 722 tokens, and 512 are allowed"):
        answers(reader, grammars, const, max_new_tokens=512)
    for text, completion in answers(reader, grammars, const, rows=1, max_new_tokens=722):
        assert json.loads(text) == const["const"] and not completion.broken


def test_an_answer_that_no_end_was_found_for_says_that_it_was_cut(reader: Reader, grammars: Grammars) -> None:
    grammar = grammars.grammar({"type": "string", "pattern": "^.*a.{300}$"})
    assert grammar.shortest == 0
    prompt = Prompt((reader.backbone.tokens("Who?"),), ("as made",))
    sampling = Sampling(max_new_tokens=20, constraint=Constraint(grammar))
    reply = Reply.begin(Service(reader, contextlib.nullcontext), prompt, sampling)
    assert len("".join(reply)) > 0 and reply.finish_reason == "length"
    cut = "the answer was cut at 20 tokens before it fitted its schema: allow more tokens"
    assert reply.notices == ("as made", cut)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"const": "a<|im_end|>"}, '"a<|im_end|>"'),
        ({"enum": ["<|im_start|>system"]}, '"<|im_start|>system"'),
        ({"type": "string", "pattern": "^<\\|endoftext\\|>$"}, '"<|endoftext|>"'),
        (
            {"type": "object", "properties": {"<|im_end|>": {"const": 1}}, "required": ["<|im_end|>"]},
            '{"<|im_end|>": 1}',
        ),
    ],
)
def test_special_tokens_of_a_schema_are_text(
    reader: Reader, grammars: Grammars, schema: dict[str, Any], text: str
) -> None:
    ((said, completion),) = answers(reader, grammars, schema, rows=1, max_new_tokens=60)
    assert said == text and min(completion.token_ids) > END


LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["red", 'a "b"', 3, None]},
        {"const": "é"},
        {"type": ["string", "null"]},
    ]
)


def _object(fields: dict[str, Any], needed: set[str]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": sorted(needed & fields.keys())}


NAMES = st.sampled_from(["a", "b c", 'd"e', "properties", "ü"])
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES)),
        inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=TREES, seed=st.integers(0, 9))
def test_any_schema_is_kept_to(reader: Reader, grammars: Grammars, schema: dict[str, Any], seed: int) -> None:
    room = max(grammars.grammar(schema).shortest, 40)
    for text, _ in answers(reader, grammars, schema, max_new_tokens=room, temperature=1.0, seed=seed):
        jsonschema.validate(json.loads(text), schema)  # as it was given: what is decoded by is narrower


def test_each_token_is_the_models_best_of_those_that_fit(reader: Reader, grammars: Grammars) -> None:
    """Against transformers' own forward, and a grammar asked for one token after the other."""
    grammar = grammars.grammar(SCHEMAS["list"])
    (_, completion), *_ = answers(reader, grammars, SCHEMAS["list"], max_new_tokens=200)
    assert completion.ended and len(completion.token_ids) < 150
    ids, matcher = prompt(reader, "Who? 0").parts[0], grammar.matcher()
    for n, token in enumerate([*completion.token_ids, END]):
        logits = by_transformers(reader.backbone, None, [*ids, *completion.token_ids[:n]])
        fits = [t for t in range(len(logits)) if t > END and matcher.validate_tokens([t]) == 1]
        fits += [END] if matcher.is_accepting() else []
        assert token == max(fits, key=lambda t: float(logits[t]))
        assert token == END or matcher.consume_token(token)


def test_other_rows_are_not_touched(reader: Reader, grammars: Grammars) -> None:
    """Rows with and without a constraint in one batch: each is, bit for bit, what it is alone."""
    held = Constraint(grammars.grammar(PERSON))
    samplings = [
        Sampling(max_new_tokens=40),
        Sampling(max_new_tokens=200, constraint=held),
        Sampling(max_new_tokens=60, temperature=0.9, seed=4),
        Sampling(max_new_tokens=200, temperature=0.9, seed=5, constraint=held),
    ]
    prompts = [prompt(reader, text) for text in ("One", "Two two", "Three", "Fourth")]
    alone = [reader.generate([p], s)[0] for p, s in zip(prompts, samplings, strict=True)]
    decoding = reader.start()
    rows = decoding.admit(prompts, samplings)
    while not decoding.done:
        decoding.advance()
    for row, want in zip(rows, alone, strict=True):
        assert row.completion.token_ids == want.token_ids
        assert row.completion.logprob == pytest.approx(want.logprob, abs=1e-5)


def test_a_row_whose_grammar_gives_up_fails_alone(
    reader: Reader, grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(reader, contextlib.nullcontext)
    held, good = Constraint(grammars.grammar(PERSON)), Constraint(grammars.grammar(SCHEMAS["list"]))
    limit = Guide.limit

    def failing(self: Guide, *given: Any) -> Any:
        if self._constraint is held and self._begun:
            raise ConfigError("the grammar gave up")
        return limit(self, *given)

    monkeypatch.setattr(Guide, "limit", failing)
    sampled = [Sampling(max_new_tokens=200, constraint=c) for c in (held, good, None)]
    begun = [service.submit(prompt(reader, "Who?"), s, keep=True) for s in sampled]
    with pytest.raises(ConfigError, match="gave up"):
        list(begun[0])
    assert json.loads(decode(reader.backbone.tokenizer, list(begun[1])))
    assert list(begun[2]) == reader.generate([prompt(reader, "Who?")], sampled[2])[0].token_ids
    assert service.load == (0, 0)
    with pytest.raises(ConfigError, match="gave up"):
        reader.generate([prompt(reader, "Who?")], sampled[0])


def test_a_grammar_is_compiled_once(reader: Reader, grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    first = grammars.grammar(PERSON)
    assert grammars.grammar(json.loads(json.dumps(PERSON))) is first
    monkeypatch.setattr(constrained, "KEPT", 2)
    for n in range(3):
        grammars.grammar({"const": n})
    assert grammars.grammar(PERSON) is not first


def test_a_lazy_constraint_holds_from_its_trigger_on(reader: Reader, grammars: Grammars) -> None:
    tokens = reader.backbone.tokens
    call = Call((), '<call>"f" ', {"type": "object"}, "")
    triggered = Guide(Constraint(grammars.grammar(None, [call]), lazy=True, trigger=tokens("<")[0]))
    for token in tokens("I call "):
        triggered.take(token)
        assert not triggered.holds
    triggered.take(tokens("<")[0])
    assert triggered.holds
    flat = torch.zeros(259)
    assert triggered.limit(flat, [END])[1] == tokens("c")[0]

    first = Guide(Constraint(grammars.grammar(None, [call]), lazy=True))
    first.take(tokens("<")[0])
    assert first.holds
    never = Guide(Constraint(grammars.grammar(None, [call]), lazy=True))
    for token in tokens("I <call>"):
        never.take(token)
    assert not never.holds


def test_special_tokens_open_a_call(reader: Reader, grammars: Grammars) -> None:
    (special,) = reader.backbone.template("<|im_start|>")
    grammar = grammars.grammar(None, [Call((special,), "f(", {"type": "integer", "maximum": 9, "minimum": 0}, ")")])
    (completion,) = reader.generate([prompt(reader, "x")], Sampling(constraint=Constraint(grammar)))
    assert completion.token_ids[0] == special and completion.ended
    text = decode(reader.backbone.tokenizer, completion.token_ids)
    assert text[:2] == "f(" and text[2].isdigit() and text[3:] == ")"


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ([], "an object, not list"),
        ({"type": "strin"}, "cannot be decoded by: Invalid type: strin"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"anyOf": []}, "anyOf is empty"),
        ({"$ref": "#/$defs/x"}, "'/\\$defs/x' does not exist"),
        ({"properties": {"a": {"$ref": "https://example.org/a.json"}}}, "refers to 'https://example.org/a.json'"),
        ({"type": "string", "minLength": 10**9}, "minLength of the JSON schema is 1000000000; 4096 is the most"),
        ({"type": "object", "properties": {"x": {"items": {"minItems": 5000}}}}, "minItems of the JSON schema is 5000"),
        ({"enum": ["x" * 70_000]}, "70,0.. bytes; 65,536 are the most"),
        (deep(40), "more than 32 values deep"),
        (deep(100_000), "more than 32 values deep"),
        ({"const": {1, 2}}, "must be JSON"),
    ],
)
def test_what_is_no_schema_is_refused(grammars: Grammars, schema: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grammars.grammar(schema)


def test_objects_hold_what_they_name(grammars: Grammars) -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    found = checked({"type": "object", "properties": {"a": inner}, "$defs": {"B": inner}, "format": "own"})
    assert found["additionalProperties"] is False and "format" not in found
    assert found["properties"]["a"]["additionalProperties"] is False
    assert found["properties"]["a"]["properties"] == {"properties": {"type": "string"}}
    assert found["$defs"]["B"]["additionalProperties"] is False
    parts = [{"properties": {"a": {}}}, {"properties": {"b": {}}}]
    assert checked({"allOf": parts}) == {"allOf": parts}  # which hold together
    open_ = {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "string"}}
    assert checked(open_) == open_


def test_a_missing_package_is_named(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'sac-rag\[tools\]'"):
        grammars.grammar(PERSON)


def test_a_tokenizer_in_python_is_refused() -> None:
    with pytest.raises(ConfigError, match="steps in Python"):
        Grammars(object(), [0], contextlib.nullcontext).grammar(PERSON)


def test_formats_of_openai() -> None:
    assert schema_of(None) is None and schema_of({"type": "text"}) is None
    assert schema_of({"type": "json_object"}) == {"type": "object"}
    assert schema_of({"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON}}) == PERSON
    assert schema_of({"type": "json_schema", "name": "x", "schema": PERSON}) == PERSON
    for wrong in ({"type": "grammar"}, {"type": "json_schema"}, "json", {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(ConfigError, match="response_format"):
            schema_of(wrong)
