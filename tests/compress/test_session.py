"""Reading behind memory against transformers: spliced prompts, batches, later turns, joined sessions."""

from __future__ import annotations

import pytest
import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Backbone
from sac_rag.compress.placing import compose
from sac_rag.compress.session import BLOCK, Session
from sac_rag.errors import MemoryInvalid
from tests.conftest import by_transformers, byte_tokenizer, tiny_llama
from tests.laws.test_memory_laws import ids

CLOSE = {"atol": 3e-5, "rtol": 1e-4}


@pytest.fixture
def sac(make_sac):
    method = make_sac(trained=True)
    kvs = method.compress([ids(n, seed=n).tolist() for n in (90, 30, 61)], 5.0)
    with torch.inference_mode():
        yield method, kvs


def text(n: int, seed: int) -> list[int]:
    return ids(n, seed=seed).tolist()


@pytest.mark.parametrize("tail", [1, 2, 17])
def test_memory_then_tokens_is_what_transformers_computes(sac, tail):
    method, kvs = sac
    memory = method.memory(kvs)
    got = Session(method.backbone, [[memory, text(tail, 1)]])
    torch.testing.assert_close(got.logits[0], by_transformers(method.backbone, memory, text(tail, 1)), **CLOSE)
    assert got.positions == [memory.next_position + tail]


def test_pieces_as_memory_equal_the_pieces_as_text(make_backbone):
    """Text A + KV(B) + text C + KV(D) + text E, with exact KVs, equals reading A B C D E."""
    b = make_backbone()
    pieces = [text(n, n) for n in (7, 20, 5, 13, 4)]
    whole = torch.tensor([t for p in pieces for t in p])
    with torch.inference_mode():
        (kv,) = b.encode([whole], [torch.arange(49)], causal=True, use_lora=False)
        parts = list(pieces)
        for index, start, end in ((1, 7, 27), (3, 32, 45)):
            n = end - start
            span = AnchorKV(kv.keys[:, :, start:end], kv.values[:, :, start:end], torch.arange(n), n)
            parts[index] = compose([span], b.inv_freq, start=start)
        got = Session(b, [parts])
        torch.testing.assert_close(got.logits[0], b.plain_logits(whole)[-1], **CLOSE)
        assert got.positions == [49]


def test_rows_read_on_as_if_alone(sac):
    """Unlike rows, single steps, dropped rows and a second turn: each row equals a session of its own."""
    method, kvs = sac
    b = method.backbone
    rows = [[method.memory(kvs), text(6, 1)], [text(31, 2)], [text(3, 3), method.memory(kvs[1:2], start=3), text(2, 4)]]
    together = Session(b, rows)
    alone = [Session(b, [row]) for row in rows]
    torch.testing.assert_close(together.logits, torch.cat([s.logits for s in alone]), **CLOSE)
    for n in range(BLOCK + 3):
        tokens = torch.tensor(text(3, 100 + n))
        together.step(tokens)
        for i, s in enumerate(alone):
            s.step(tokens[i : i + 1])
    torch.testing.assert_close(together.logits, torch.cat([s.logits for s in alone]), **CLOSE)
    together.keep([2, 0])
    alone = [alone[2], alone[0]]
    following = [[text(1, 7)], [text(4, 5)]]
    together.read(following)
    for s, row in zip(alone, following, strict=True):
        s.read([row])
    torch.testing.assert_close(together.logits, torch.cat([s.logits for s in alone]), **CLOSE)
    assert together.positions == [p for s in alone for p in s.positions]


def test_a_later_turn_brings_memory_of_its_own(sac):
    method, kvs = sac
    b = method.backbone
    first = method.memory(kvs[:1])
    second = method.memory(kvs[1:], start=first.next_position + 5)
    session = Session(b, [[first, text(5, 1)]])
    session.read([[second, text(4, 2)]])
    whole = Session(b, [[first, text(5, 1), second, text(4, 2)]])
    torch.testing.assert_close(session.logits, whole.logits, **CLOSE)


def test_joined_sessions_go_on_as_they_were(sac):
    method, kvs = sac
    b = method.backbone
    rows = [[method.memory(kvs), text(6, 1)], [text(70, 2)], [method.memory(kvs[2:]), text(2, 3)]]
    alone = [Session(b, [row]) for row in rows]
    joined = Session(b, rows[:1])
    joined.step(torch.tensor([9]))
    alone[0].step(torch.tensor([9]))
    joined.join(Session(b, rows[1:]))
    for n in range(4):
        tokens = torch.tensor(text(3, 50 + n))
        joined.step(tokens)
        for i, s in enumerate(alone):
            s.step(tokens[i : i + 1])
    torch.testing.assert_close(joined.logits, torch.cat([s.logits for s in alone]), **CLOSE)
    with pytest.raises(ValueError, match="one backbone"):
        joined.join(Session(b, rows[1:2], use_lora=True))


def test_memory_is_not_changed_by_reading(sac):
    method, kvs = sac
    memory = method.memory(kvs)
    before = memory.keys.clone(), memory.values.clone()
    Session(method.backbone, [[memory, text(5, 1)]]).step(torch.tensor([4]))
    assert torch.equal(memory.keys, before[0]) and torch.equal(memory.values, before[1])


def test_a_misplaced_memory_and_an_endless_prompt_are_refused(sac):
    method, kvs = sac
    with pytest.raises(MemoryInvalid, match="placed at position 0 stands at 3"):
        Session(method.backbone, [[text(3, 1), method.memory(kvs), text(2, 2)]])
    for parts in ([method.memory(kvs)], [method.memory(kvs), []], []):
        with pytest.raises(MemoryInvalid, match="at least one token"):
            Session(method.backbone, [parts])


def test_a_row_taken_out_and_rewound_is_the_shorter_row(sac):
    method, kvs = sac
    b = method.backbone
    memory = method.memory(kvs)
    batch = Session(b, [[text(40, 1)], [memory, text(6, 2)]])
    batch.read([[text(2, 3)], [text(5, 4)]])
    one = batch.row(1)
    assert one.slots == memory.slots + 11
    one.rewind(memory.slots + 4, memory.next_position + 4)
    one.read([[text(3, 5)]])
    want = Session(b, [[memory, text(6, 2)[:4], text(3, 5)]])
    torch.testing.assert_close(one.logits, want.logits, **CLOSE)
    batch.step(torch.tensor([3, 4]))
    with pytest.raises(ValueError, match="cannot rewind 2 rows"):
        batch.rewind(1, 1)


def test_a_row_computes_the_same_bits_in_any_company():
    """Prefill, steps and a later turn in bf16: not close, but equal, whoever stands beside it in the batch."""
    b = Backbone(tiny_llama().bfloat16(), byte_tokenizer())
    rows = [[text(n, n)] for n in (5, 130, 40, 64, 1, 77)]
    with torch.inference_mode():
        together, alone = Session(b, rows), [Session(b, [row]) for row in rows]
        for n in range(5):
            tokens = torch.tensor(text(len(rows), 30 + n))
            together.step(tokens)
            for i, s in enumerate(alone):
                s.step(tokens[i : i + 1])
        turns = [[text(3 + i, 60 + i)] for i in range(len(rows))]
        together.read(turns)
        for s, turn in zip(alone, turns, strict=True):
            s.read([turn])
    assert torch.equal(together.logits, torch.cat([s.logits for s in alone]))


@pytest.mark.parametrize("cuts", [(1,), (63,), (64, 65), (100,), (7, 90, 139)], ids=str)
def test_a_prompt_has_the_same_bits_however_it_was_read(cuts):
    """In one piece, in several, or its last tokens one by one: what was kept of it does not move an answer (bf16)."""
    b = Backbone(tiny_llama(hidden_size=192, num_attention_heads=3, num_key_value_heads=1).bfloat16(), byte_tokenizer())
    prompt = text(140, 1)
    with torch.inference_mode():
        whole = Session(b, [[prompt]])
        parts = Session(b, [[prompt[: cuts[0]]]])
        for start, end in zip(cuts, (*cuts[1:], 140), strict=True):
            parts.read([[prompt[start:end]]])
        steps = Session(b, [[prompt[: cuts[0]]]])
        for token in prompt[cuts[0] :]:
            steps.step(torch.tensor([token]))
    assert torch.equal(parts.logits, whole.logits) and torch.equal(steps.logits, whole.logits)
