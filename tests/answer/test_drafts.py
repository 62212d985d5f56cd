"""Drafts: what is looked up, and that no draft, right or wrong, changes an answer."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch

from sac_rag.answer.drafts import DRAFT_TOKENS, SUFFIX_TOKENS, Drafter
from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Completion, Decoding, Reader, Sampling
from sac_rag.answer.reply import Reply
from sac_rag.answer.service import Service
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.session import BATCH_TOKENS, Session
from sac_rag.errors import ConfigError
from tests.compress.test_session import placed, text
from tests.conftest import byte_tokenizer, tiny_llama, tiny_model


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_llama(), byte_tokenizer())


def drafted(backbone: Backbone, said: str, *texts: str, most: int = 6, parts: tuple[str, ...] = ()) -> str:
    """By characters: the tokens of the toy are bytes."""
    drafter = Drafter(backbone, Prompt(tuple(backbone.tokens(p) for p in parts), texts=texts))
    return backbone.tokenizer.decode(drafter.draft(backbone.tokens(said), most))


@pytest.mark.parametrize(
    ("said", "texts", "want"),
    [
        ("canal", ("The Erie canal is long.",), " is lo"),
        ("CANAL", ("The Erie canal is long.",), " is lo"),  # as a word that begins an answer is written
        ("canal", ("A canal here", "a canal there"), " here"),  # the best passage first
        ("e c", ("a cat", "the cow"), "ow"),  # but the longer match before it
        ("ng.", ("The Erie canal is long.", "More"), ""),  # nothing follows the end of a text
        ("long", ("It is long.", "Long ago"), "."),
        ("xyz", ("The Erie canal is long.",), ""),
        ("canal", (), ""),
        ("", ("The Erie canal is long.",), ""),
    ],
)
def test_what_follows_the_last_words_in_the_text_is_drafted(backbone, said, texts, want):
    assert drafted(backbone, said, *texts, "The Erie") == want


def test_passages_come_before_the_prompt_and_the_prompt_is_looked_up_too(backbone):
    assert drafted(backbone, "ab", "x abc", parts=("abd",)) == "c"
    assert drafted(backbone, "ab", "x", parts=("abd", "efg")) == "d"


def test_a_draft_is_as_long_as_allowed(backbone):
    long = "abcdefghijklmnopqrstuvwxyz"
    for most in (0, 1, 3, DRAFT_TOKENS, 100):
        assert drafted(backbone, "a", long, most=most) == long[1 : 1 + min(most, DRAFT_TOKENS)]
    assert DRAFT_TOKENS < BATCH_TOKENS and SUFFIX_TOKENS > 1


def test_ids_that_the_tokenizer_does_not_know_are_no_words_of_a_text():
    b = Backbone(tiny_llama(vocab_size=400), byte_tokenizer())
    drafter = Drafter(b, Prompt(([390, 5, 391, 6],)))
    assert drafter.draft([5], 3) == [391, 6]
    assert len(drafter.draft([399], 3)) <= 3


class Guessing(Drafter):
    """Drafts the true answer of each prompt, its tokens wrong now and then."""

    answers: dict[int, list[int]]
    wrong: float
    rng: random.Random

    def draft(self, answer, most):
        whole = [*self.answers[id(self._prompt)], *text(9, 1)]
        guess = whole[len(answer) : len(answer) + most]
        return [t if self.rng.random() >= self.wrong else 7 for t in guess]


@pytest.fixture(params=["fp32", "bf16, packed"])
def rows(request) -> tuple[Backbone, list[Prompt]]:
    b = Backbone(tiny_model("llama", hidden_size=256), byte_tokenizer())
    if request.param != "fp32":
        b = Backbone(tiny_model("llama", hidden_size=256).bfloat16(), byte_tokenizer())
        b.pack()
    memory = placed(b, 70, 1)
    prompts = [Prompt((memory, text(9, 1))), Prompt((text(23, 2),)), Prompt((placed(b, 30, 2), text(4, 3)))]
    return b, prompts


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 5}], ids=["greedy", "sampled"])
def test_no_draft_changes_an_answer(rows, settings, wrong, monkeypatch):
    """Tokens, log-probability and end, alone and in a batch, with limits on the length; and what a conversation goes on
    with is what steps would have left."""
    b, prompts = rows
    sampling = Sampling(max_new_tokens=21, min_new_tokens=3, **settings)
    plain, exact = Reader(b, [2], draft_tokens=0), b.dtype == torch.bfloat16
    if not exact and wrong != 0.3:
        pytest.skip("bf16 compares these to the bit")
    free = [plain.generate([p], sampling)[0] for p in prompts]
    stop = free[1].token_ids[12]
    monkeypatch.setattr(Guessing, "answers", {id(p): c.token_ids for p, c in zip(prompts, free, strict=True)}, False)
    monkeypatch.setattr(Guessing, "wrong", wrong, False)
    monkeypatch.setattr(Guessing, "rng", random.Random(0), False)
    for ends in ([2], [2, stop]):
        want = [Reader(b, ends, draft_tokens=0).generate([p], sampling)[0] for p in prompts]
        with monkeypatch.context() as m:
            m.setattr("sac_rag.answer.reader.Drafter", Guessing)
            assert same([Reader(b, ends).generate([p], sampling)[0] for p in prompts], want, exact)
            assert same(Reader(b, ends).generate(prompts, sampling), want, exact)
            decoding = Reader(b, ends).start()
            states, passes = _played(decoding, prompts, sampling)
        slow, steps = _played(Reader(b, ends, draft_tokens=0).start(), prompts, sampling)
        for got, expected in zip(states, slow, strict=True):
            assert got.positions == expected.positions and got.slots == expected.slots
            after, wanted = got.read([[text(5, 8)]]), expected.read([[text(5, 8)]])
            assert torch.equal(after, wanted) if exact else torch.allclose(after, wanted, atol=3e-5)
        if wrong < 1:
            assert sum(passes) < (0.4 if not wrong else 0.9) * sum(steps)
        else:
            assert sum(passes) <= sum(steps)


def same(got: list[Completion], want: list[Completion], exact: bool) -> bool:
    """To the bit, or in fp32, whose products change with the number of rows, up to the last bits of probabilities."""
    pairs = list(zip(got, want, strict=True))
    if exact:
        return all(a == b for a, b in pairs)
    return all(
        (a.token_ids, a.ended) == (b.token_ids, b.ended) and a.logprob == pytest.approx(b.logprob, abs=1e-4)
        for a, b in pairs
    )


def _played(decoding: Decoding, prompts: list[Prompt], sampling: Sampling) -> tuple[list[Session], list[int]]:
    """Sessions of the rows at their ends, and passes that they took."""
    made = decoding.admit(prompts, [sampling] * len(prompts))
    ended: dict[int, Session] = {}
    while not decoding.done:
        for row in decoding.rows:
            session = decoding.session_of(row)
            if row.done and session is not None:
                ended[made.index(row)] = session
        decoding.advance()
    return [ended[n] for n in range(len(made))], [row.passes for row in made]


def test_rows_share_the_tokens_that_are_read_together(rows, monkeypatch):
    """A pass has `BATCH_TOKENS` at the most, whatever the number of rows, and none is drafted where all are taken."""
    b, prompts = rows
    monkeypatch.setattr(Drafter, "draft", lambda self, answer, most: [5] * max(0, min(most, DRAFT_TOKENS)))
    seen = []
    extend = Session.extend
    monkeypatch.setattr(Session, "extend", lambda self, t: seen.append([len(row) for row in t]) or extend(self, t))
    for count in (1, 2, 3, 5, 8, 9, 16):
        seen.clear()
        decoding = Reader(b, []).start()
        decoding.admit([prompts[1]] * count, [Sampling(max_new_tokens=10)] * count)
        decoding.advance()
        assert sum(map(sum, seen)) <= BATCH_TOKENS
        assert seen == ([[1 + min(DRAFT_TOKENS, BATCH_TOKENS // count - 1)] * count] if count <= 8 else [])


def test_a_constraint_that_fails_within_a_draft_ends_its_row_alone(rows, monkeypatch):
    b, prompts = rows
    monkeypatch.setattr(Drafter, "draft", lambda self, answer, most: [5] * max(0, min(most, DRAFT_TOKENS)))
    decoding = Reader(b, []).start()
    first, second = decoding.admit(prompts[:2], [Sampling(max_new_tokens=10)] * 2)

    def failing(*args):
        raise ConfigError("cannot go on")

    monkeypatch.setattr(first, "choose", failing)
    decoding.advance()
    assert first.done and first.error is not None and not second.done
    while not decoding.done:
        decoding.advance()
    (want,) = Reader(b, [], draft_tokens=0).generate([prompts[1]], Sampling(max_new_tokens=10))
    assert same([second.completion], [want], b.dtype == torch.bfloat16)


@pytest.mark.parametrize("draft_tokens", [0, DRAFT_TOKENS])
def test_what_is_made_behind_a_stop_string_is_no_part_of_an_answer(rows, monkeypatch, draft_tokens):
    """A pass may be right about more tokens than the answer has: its ids, probability and end are those in front."""
    b, prompts = rows
    sampling = Sampling(max_new_tokens=24)
    (free,) = Reader(b, [], draft_tokens=0).generate([prompts[1]], sampling)
    monkeypatch.setattr(Drafter, "draft", lambda self, answer, most: free.token_ids[len(answer) :][: max(0, most)])
    words = "".join(chr(97 + n) for n in range(24))
    monkeypatch.setattr("sac_rag.answer.reader.decode", lambda tokenizer, ids: words[: len(ids)])
    for count in (1, 3, 10, 23, 24):
        service = Service(Reader(b, [], draft_tokens=draft_tokens), contextlib.nullcontext)
        reply = Reply.begin(service, prompts[1], sampling, stop=[words[count - 1]])
        assert "".join(reply) == words[: count - 1] and reply.finish_reason == "stop"
        (want,) = Reader(b, [], draft_tokens=0).generate([prompts[1]], Sampling(max_new_tokens=count))
        assert same([reply.completion], [want], b.dtype == torch.bfloat16) and not reply.completion.broken
        service.close()
