"""Law 10: an answer from a batch equals the answer alone, and a streamed answer equals the whole one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sac_rag.answer.prompt import Prompt
from sac_rag.answer.reader import Reader, Sampling, TextStream, decode
from tests.compress.test_session import uneven
from tests.conftest import byte_tokenizer
from tests.laws.test_memory_laws import ids


@pytest.fixture
def prompts(make_sac):
    method = make_sac(trained=True)
    kvs = method.compress([ids(n, seed=n).tolist() for n in (120, 30, 77)], 5.0)
    return method, [
        Prompt((method.memory(kvs), ids(9, seed=1).tolist())),
        Prompt((method.memory(kvs[1:2]), ids(23, seed=2).tolist())),
        Prompt((ids(4, seed=3).tolist(),)),
        Prompt((method.memory([kvs[2], kvs[0]]), ids(12, seed=4).tolist())),
        Prompt((ids(5, seed=5).tolist(), method.memory(kvs[:1], start=5), ids(3, seed=6).tolist())),
        Prompt((method.memory([uneven(method.backbone, 150, 1), kvs[1]]), ids(8, seed=7).tolist())),
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batched_equals_alone(prompts, temperature):
    method, rows = prompts
    sampling = Sampling(max_new_tokens=24, temperature=temperature, top_p=0.95, seed=3)
    alone = [Reader(method.backbone, [2]).generate([p], sampling)[0] for p in rows]
    # An end token that some rows meet early makes rows leave the batch at different steps.
    stop = alone[0].token_ids[7]
    reader = Reader(method.backbone, [2, stop])
    alone = [reader.generate([p], sampling)[0] for p in rows]
    together = reader.generate(rows, sampling)
    assert len({len(c.token_ids) for c in alone}) > 1
    for a, b in zip(alone, together, strict=True):
        assert a.token_ids == b.token_ids and a.ended == b.ended
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_greedy_equals_a_plain_loop_over_the_whole_sequence(make_backbone):
    b = make_backbone(lora=False)
    text = ids(20).tolist()
    (got,) = Reader(b, []).generate([Prompt((text,))], Sampling(max_new_tokens=10))
    want = list(text)
    with torch.no_grad():
        for _ in range(10):
            want.append(int(b.plain_logits(torch.tensor(want))[-1].argmax()))
    assert got.token_ids == want[20:]


def test_rows_that_join_later_equal_rows_alone(prompts):
    method, rows = prompts
    sampling = Sampling(max_new_tokens=12)
    reader = Reader(method.backbone, [2])
    alone = [reader.generate([p], sampling)[0].token_ids for p in rows]
    decoding = reader.start()
    got = decoding.admit(rows[:2], [sampling] * 2)
    for prompt in rows[2:]:
        decoding.advance()
        got += decoding.admit([prompt], [sampling])
    while not decoding.done:
        decoding.advance()
    assert [r.completion.token_ids for r in got] == alone


def test_an_answer_has_the_least_length_asked_for(prompts):
    method, rows = prompts
    (free,) = Reader(method.backbone, []).generate(rows[:1], Sampling(max_new_tokens=6))
    stop = free.token_ids[0]
    reader = Reader(method.backbone, [stop])
    (empty,) = reader.generate(rows[:1], Sampling(max_new_tokens=6))
    assert empty.token_ids == [] and empty.ended
    (some,) = reader.generate(rows[:1], Sampling(max_new_tokens=6, min_new_tokens=3))
    assert len(some.token_ids) >= 3 and stop not in some.token_ids[:3]


@pytest.mark.parametrize("stop", [["cde"], ["zz", "de"], ["h"], ["ghx"]])
def test_a_stop_string_ends_the_text_before_it(stop):
    class Holder:
        tokenizer = byte_tokenizer()

    whole = "abcdefgh"
    stream = TextStream(Holder, stop)
    pieces = [stream.push(t) for t in Holder.tokenizer(whole, add_special_tokens=False)["input_ids"]]
    got = "".join([*pieces, stream.flush()])
    cuts = [whole.find(s) for s in stop if s in whole]
    assert got == whole[: min(cuts, default=len(whole))] and stream.stopped == bool(cuts)


def test_a_stop_string_costs_no_more_than_the_text_is_long():
    """Each of its beginnings was compared with each text, also those that are longer than any text: hours for one."""

    class Holder:
        tokenizer = byte_tokenizer()

    class Counted(str):
        cuts = 0

        def __getitem__(self, key):
            Counted.cuts += 1
            return super().__getitem__(key)

    stop = Counted("ab" * 500_000)
    stream = TextStream(Holder, [stop])
    pieces = [stream.push(t) for t in Holder.tokenizer("abcaba", add_special_tokens=False)["input_ids"]]
    assert "".join([*pieces, stream.flush()]) == "abcaba" and pieces[-1] == ""
    assert Counted.cuts <= sum(range(7))


@given(st.text(max_size=40))
def test_streamed_pieces_join_to_the_whole(text):
    class Holder:
        tokenizer = byte_tokenizer()

    tokens = Holder.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    stream = TextStream(Holder)
    pieces = [stream.push(t) for t in tokens]
    whole = "".join([*pieces, stream.flush()])
    assert whole == decode(Holder.tokenizer, tokens)
    assert not any("\ufffd" in p for p in pieces) or "\ufffd" in text
