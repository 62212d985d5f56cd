"""Constrained decoding: at each step a grammar says which tokens may come next, for one row of a batch.

Grammars are llguidance's, which is an extra (`tools`): of JSON schemas, alone or within the words of a tool call.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sac_rag.errors import ConfigError

MOST_BYTES = 65_536
"""Largest schema, in bytes of JSON."""
MOST_DEPTH = 32
"""Deepest schema, in values within values."""
MOST_REPEATS = 4096
"""Largest number in a schema that counts characters, items or properties: a grammar grows with it."""
MOST_CLOSING = 65_536
"""Longest end of an answer, in tokens, that is looked for: as much as a schema can say word by word."""
MOST_CHOICES = 64
"""Tokens of an end that the grammar leaves open, at most, while an answer is decoded: each costs as much as a step's
own look at it."""
MOST_CHOICES_AT_ALL = 4096
"""The same before an answer begins, once for each grammar."""
MOST_SYMBOLS, MOST_STATES, MOST_FUEL = 200_000, 20_000, 100_000
"""Symbols of the largest grammar, states of its lexer, and work of a step (some 10,000 a millisecond)."""
KEPT = 32
"""Compiled grammars that are kept."""

_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties".split())
_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
"""Formats of strings that are held to; others are remarks, as JSON Schema has it."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "not", "if", "then", "else", "contains")
_LETTERS = "qzX"
"""They may all come next within a string that is free, and nowhere else in JSON."""
_ENDS = ('"', "}", "]", ",", ":", "0", "1", "[", "{", "t", "f", "n")
"""What leads to an end soonest, in this order; outside of free strings the quote comes after the brackets."""


class Grammar:
    """What an answer may be, compiled for one tokenizer. Its state belongs to each answer: `Guide`."""

    def __init__(self, matcher: Any, characters: Mapping[str, int]) -> None:
        self._matcher, self.characters = matcher, characters
        self.shortest = len(closing(matcher, characters, choices=MOST_CHOICES_AT_ALL) or ())
        """Tokens of about the shortest answer; 0 where none was found."""

    def matcher(self) -> Any:
        """A matcher at the beginning."""
        return self._matcher.deep_copy()


@dataclass(frozen=True)
class Call:
    """The words of one call: special tokens, text, arguments that fit a schema, text."""

    opening: tuple[int, ...]
    before: str
    schema: Mapping[str, Any]
    after: str


@dataclass(frozen=True)
class Constraint:
    """What one answer is held to.

    lazy: only where the model begins so by itself: with the token `trigger`, wherever it is, or, without one, at the
    very beginning of the answer.
    """

    grammar: Grammar
    lazy: bool = False
    trigger: int | None = None

    @property
    def shortest(self) -> int:
        """Tokens that an answer needs at least."""
        return 0 if self.lazy else self.grammar.shortest


class Guide:
    """The state of one answer that is held to a constraint."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint, self._matcher = constraint, constraint.grammar.matcher()
        self.holds = not constraint.lazy
        """Whether what comes next is constrained."""
        self._begun = False

    def limit(self, logprobs: torch.Tensor, stop_ids: Collection[int]) -> tuple[torch.Tensor, int]:
        """(vocabulary,) log-probabilities with -inf where a token may not come next, and the best that may.

        Raises ConfigError where the grammar gives up.
        """
        matcher = self._matcher
        if matcher.is_stopped():
            self._check()
            return _only(stop_ids, logprobs)
        allowed = _allowed(matcher, logprobs.shape[-1])
        self._check()
        ends = sorted(stop_ids)
        allowed[ends] = matcher.is_accepting()
        logprobs = logprobs.masked_fill(~torch.from_numpy(allowed).to(logprobs.device), -torch.inf)
        return logprobs, int(logprobs.argmax())

    def in_time(self, token: int, stop_ids: Collection[int], left: int) -> int:
        """The token that was chosen, if an end can be reached behind it; else the next one of a short end.

        left: tokens until the limit of the answer, this one among them. So an answer that is cut fits its schema, too.
        """
        if token in stop_ids:
            return token
        characters, ahead = self._constraint.grammar.characters, self._matcher.deep_copy()
        ahead.consume_token(token)
        if closing(ahead, characters, most=left - 1) is not None:
            return token
        end = closing(self._matcher, characters, most=left)
        if end is None:
            return token
        return end[0] if end else min(stop_ids)

    @property
    def whole(self) -> bool:
        """Whether what has been written may end here."""
        return not self.holds or bool(self._matcher.is_accepting())

    def take(self, token: int) -> None:
        """The token that was chosen."""
        trigger, first = self._constraint.trigger, not self._begun
        self._begun = True
        if not self.holds:
            begins = token == trigger or (first and trigger is None)
            self.holds = begins and self._matcher.validate_tokens([token]) == 1
        if self.holds and not self._matcher.consume_token(token):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(
                f"the answer could not be held to its schema, which is too hard to decode by: "
                f"{_brief(self._matcher.get_error())}; give a simpler schema"
            )


class Grammars:
    """The grammars of one tokenizer, compiled at their first use; for any thread."""

    def __init__(
        self, tokenizer: Any, stop_ids: Sequence[int], busy: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """busy: held while the tokenizer is read."""
        self._source, self._stop_ids, self._busy = tokenizer, list(stop_ids), busy
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._characters: dict[str, int] = {}
        self._made: OrderedDict[str, Grammar] = OrderedDict()

    def grammar(self, schema: Mapping[str, Any] | None, calls: Sequence[Call] = ()) -> Grammar:
        """JSON that fits a schema, if there is one, or one of several calls.

        Raises ConfigError for a schema that cannot be compiled, or is too large.
        """
        rules = {} if schema is None else {"answer": _json(schema)}
        for i, call in enumerate(calls):
            opening = [f"<[{token}]>" for token in call.opening]
            rules[f"call{i}"] = " ".join((*opening, _literal(call.before), _json(call.schema), _literal(call.after)))
        return self._compiled("\n".join([f"start: {' | '.join(rules)}", *(f"{n}: {r}" for n, r in rules.items())]))

    def _compiled(self, lark: str) -> Grammar:
        with self._lock:
            found = self._made.get(lark)
            if found is None:
                found = self._made[lark] = self._compile(lark)
                if len(self._made) > KEPT:
                    self._made.popitem(last=False)
            else:
                self._made.move_to_end(lark)
            return found

    def _compile(self, lark: str) -> Grammar:
        try:
            import llguidance
        except ImportError as error:
            raise ConfigError("tools and structured output need llguidance: pip install 'sac-rag[tools]'") from error
        if self._tokenizer is None:
            with self._busy():
                said = _said(self._source)
            try:
                self._tokenizer = llguidance.LLTokenizer(said, eos_token=self._stop_ids)
            except ValueError as error:
                raise ConfigError(f"no answer of this model can be held to a schema: {_brief(str(error))}") from error
            self._characters = _characters(self._tokenizer)
        limits = llguidance.LLParserLimits(
            max_grammar_size=MOST_SYMBOLS,
            max_lexer_states=MOST_STATES,
            step_lexer_fuel=MOST_FUEL,
            verbose_errors=False,
        )
        matcher = llguidance.LLMatcher(
            self._tokenizer, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits
        )
        if matcher.is_error():
            raise ConfigError(f"this JSON schema cannot be decoded by: {_brief(matcher.get_error())}")
        return Grammar(matcher, self._characters)


def closing(
    matcher: Any, characters: Mapping[str, int], *, most: int = MOST_CLOSING, choices: int = MOST_CHOICES
) -> list[int] | None:
    """A short end of what has been written, in tokens, empty where it may end as it is; None where none was found of
    at most so many tokens and choices."""
    matcher = matcher.deep_copy()
    end: list[int] = []
    while not matcher.is_accepting():
        tokens = matcher.compute_ff_tokens()
        if not tokens:
            tokens, choices = _shortest(matcher, characters), choices - 1
        end += tokens
        if not tokens or len(end) > most or choices < 0 or not matcher.consume_tokens(tokens):
            return None
    return end


def _shortest(matcher: Any, characters: Mapping[str, int]) -> list[int]:
    """The token that leads to an end soonest."""
    allowed = _allowed(matcher)
    if matcher.is_error():
        return []
    within = all(allowed[characters[c]] for c in _LETTERS if c in characters)
    order = _ENDS if within else ("}", "]", *_ENDS)
    named = (characters[c] for c in order if c in characters)
    anything = np.flatnonzero(allowed)
    found = next((token for token in named if allowed[token]), None)
    return [found] if found is not None else [int(t) for t in anything[:1]]


def _allowed(matcher: Any, size: int | None = None) -> np.ndarray:
    """Which tokens may come next, bool of shape (size,)."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little").astype(bool)
    if size is None or len(bits) == size:
        return bits
    return np.concatenate((bits, np.zeros(max(0, size - len(bits)), bool)))[:size]


def _only(tokens: Collection[int], logprobs: torch.Tensor) -> tuple[torch.Tensor, int]:
    kept = torch.full_like(logprobs, -torch.inf)
    index = torch.tensor(sorted(tokens), device=logprobs.device)
    kept[index] = logprobs[index]
    return kept, int(kept.argmax())


def _said(tokenizer: Any) -> str:
    """A tokenizer as JSON. Raises ConfigError for one that is no chain of `tokenizers`.

    Special tokens have names there that no JSON holds (NUL is never written as itself): what a schema says that is
    spelled like one is text, as everywhere.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError("this model's tokenizer has steps in Python, and no answer of it can be held to a schema")
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {t["content"]: f"\0{t['id']}" for t in said["added_tokens"] if t["special"]}
    for token in said["added_tokens"]:
        token["content"] = special.get(token["content"], token["content"])
    model = said["model"]
    vocabulary = model.get("vocab", {})
    if isinstance(vocabulary, dict):
        model["vocab"] = {special.get(word, word): i for word, i in vocabulary.items()}
    else:  # of a Unigram model: [word, score] by id
        model["vocab"] = [[special.get(word, word), score] for word, score in vocabulary]
    if model.get("unk_token") in special:
        model["unk_token"] = special[model["unk_token"]]
    return json.dumps({**said, "post_processor": None})


def _characters(tokenizer: Any) -> dict[str, int]:
    """Ids of single characters that are tokens."""
    found = {c: tokenizer.greedy_tokenize(c) for c in (*_ENDS, *_LETTERS)}
    return {c: ids[0] for c, ids in found.items() if len(ids) == 1}


# -- schemas -------------------------------------------------------------------------------------------------


def schema_of(form: Any) -> dict[str, Any] | None:
    """The JSON schema of OpenAI's `response_format`, also as the responses' `text.format` has it; None for free text.

    Raises ConfigError for another format.
    """
    if form is None or form == {"type": "text"}:
        return None
    if isinstance(form, Mapping) and form.get("type") == "json_object":
        return {"type": "object"}
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        said = form.get("json_schema", form)
        if isinstance(said, Mapping) and isinstance(said.get("schema"), Mapping):
            return dict(said["schema"])
    raise ConfigError(
        f"response_format is {json.dumps(form, default=str)[:120]}; use {{'type': 'json_schema', 'json_schema': "
        "{'name': …, 'schema': {…}}}, {'type': 'json_object'} or {'type': 'text'}"
    )


def checked(schema: Any) -> dict[str, Any]:
    """A schema as it is decoded: objects hold the properties that they name and no others, unless they say so.

    Raises ConfigError for what is no schema, is too large or too deep, or refers to another document.
    """
    if not isinstance(schema, Mapping):
        raise ConfigError(f"a JSON schema is an object, not {type(schema).__name__}")
    _check_depth(schema)
    try:
        size = len(json.dumps(schema))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a JSON schema must be JSON: {error}") from error
    if size > MOST_BYTES:
        raise ConfigError(f"the JSON schema has {size:,} bytes; {MOST_BYTES:,} are the most")
    return _closed(schema, whole=True)


def _check_depth(schema: Any) -> None:
    """Not by recursion: what is too deep must not end in an error of Python's."""
    level: list[Any] = [schema]
    for _ in range(MOST_DEPTH):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return
    raise ConfigError(f"the JSON schema is more than {MOST_DEPTH} values deep; nest less")


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def _closed(schema: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """whole: whether the schema says all of an object, and is not one of several that hold together."""
    out = dict(schema)
    reference = out.get("$ref", "#")
    if not (isinstance(reference, str) and reference.startswith("#")):
        raise ConfigError(f"the JSON schema refers to {str(reference)[:80]!r}; only its own parts (#/…) are read")
    for name in _COUNTS & out.keys():
        if isinstance(out[name], int | float) and out[name] > MOST_REPEATS:
            raise ConfigError(f"{name} of the JSON schema is {out[name]}; {MOST_REPEATS} is the most")
    if out.get("format") not in _FORMATS:
        out.pop("format", None)
    for name in _MAPS:
        if isinstance(out.get(name), Mapping):
            out[name] = {key: _inside(value, whole=True) for key, value in out[name].items()}
    for name in _LISTS:
        if isinstance(out.get(name), list | tuple):
            out[name] = [_inside(value, whole=whole and name != "allOf") for value in out[name]]
    for name in _SINGLE:
        if isinstance(out.get(name), Mapping):
            out[name] = _inside(out[name], whole=name in ("items", "additionalProperties"))
    alone = not out.keys() & {"allOf", "anyOf", "oneOf", "$ref", "patternProperties", "unevaluatedProperties"}
    if whole and alone and isinstance(out.get("properties"), Mapping):
        out.setdefault("additionalProperties", False)
    return out


def _inside(value: Any, *, whole: bool) -> Any:
    return _closed(value, whole=whole) if isinstance(value, Mapping) else value


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**checked(schema), 'x-guidance': _OPTIONS})}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _brief(message: str) -> str:
    """What llguidance says, without where in our own grammar it stands."""
    said = message.rpartition("failed to compile JSON schema: ")[2].partition("\n   1 |")[0]
    return " ".join(said.split())[:300]
