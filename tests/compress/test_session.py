"""Reading behind memory against transformers and token by token: even memories and such whose heads keep unlike
numbers of tokens, spliced prompts, batches, later turns, joined and rewound sessions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress.anchor_kv import AnchorKV, Memory, Slots
from sac_rag.compress.backbone import Backbone, Reading
from sac_rag.compress.placing import Placing, compose
from sac_rag.compress.session import BLOCK, SLOTS_PER_CALL, Session, _near
from sac_rag.errors import MemoryInvalid
from sac_rag.families import FAMILIES
from tests.conftest import by_transformers, byte_tokenizer, tiny_llama, tiny_model
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


def uneven(b: Backbone, length: int, seed: int) -> AnchorKV:
    """A random memory of a passage: heads keep any number of its tokens, some of them none, and one layer nothing."""
    generator = torch.Generator().manual_seed(seed)
    layers, heads, dim = b.kv_shape
    counts = torch.randint(0, length + 1, (layers, heads), generator=generator)
    counts[torch.rand(layers, heads, generator=generator) < 0.3] = 0
    counts[seed % layers] = 0
    counts[(seed + 1) % layers, seed % heads] = length
    runs = [torch.randperm(length, generator=generator)[:n].sort().values for n in counts.flatten().tolist()]
    slots = Slots.of(runs, layers, heads)
    keys, values = torch.randn(2, slots.positions.numel(), dim, generator=generator).to(b.dtype)
    return AnchorKV(keys, values, slots.positions, slots.counts, length)


def placed(b: Backbone, length: int, seed: int, start: int = 0) -> Memory:
    return compose([uneven(b, length, seed)], b.inv_freq, start=start)


def wide(**settings) -> Backbone:
    """In bf16, with heads as wide as real ones: what differs in the order of its sums differs in its bits."""
    return Backbone(tiny_llama(**{"hidden_size": 256, **settings}).bfloat16(), byte_tokenizer())


def token_by_token(b: Backbone, parts) -> torch.Tensor:
    """The oracle of runs: next logits (vocabulary,), every head with a list of its own keys and values."""
    layers, groups, dim = b.kv_shape
    repeat = b.config.num_attention_heads // groups
    held = [[([], []) for _ in range(groups)] for _ in range(layers)]

    def mix(layer, q, k, v):
        out = []
        for head in range(groups * repeat):
            keys, values = held[layer][head // repeat]
            if head % repeat == 0:
                keys.append(k[0, head // repeat])
                values.append(v[0, head // repeat])
            weights = (torch.stack(keys) @ q[0, head] * dim**-0.5).softmax(0)
            out.append(weights @ torch.stack(values))
        return torch.cat(out)[None]

    position = 0
    for part in parts:
        if isinstance(part, Memory):
            for layer, runs in enumerate(part.layer_runs()):
                for (keys, values), run in zip(held[layer], runs, strict=True):
                    keys += run[0]
                    values += run[1]
            position = part.next_position
            continue
        for token in part:
            logits = b.walk(torch.tensor([token]), torch.tensor([position]), mix)
            position += 1
    return logits[0]


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
        (kv,) = b.encode([whole], [b.even(torch.arange(49))], causal=True, use_lora=False)
        keys, values = (t.view(*kv.counts.shape, 49, -1) for t in (kv.keys, kv.values))
        parts = list(pieces)
        for index, start, end in ((1, 7, 27), (3, 32, 45)):
            n = end - start
            span = AnchorKV.even(keys[:, :, start:end], values[:, :, start:end], torch.arange(n), n)
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
    one.rewind([memory.next_position + 4])
    assert one.slots == memory.slots + 4
    one.read([[text(3, 5)]])
    want = Session(b, [[memory, text(6, 2)[:4], text(3, 5)]])
    torch.testing.assert_close(one.logits, want.logits, **CLOSE)


def test_rows_are_rewound_each_to_its_own_place(sac):
    """In a batch whose second row adds a bias to a memory's scores, as far as into the prompt."""
    method, kvs = sac
    b = method.backbone
    biased = method.passages([[kv] for kv in kvs], placing=Placing(prior=0.7))
    rows = [[text(40, 1)], [biased, text(6, 2)], [method.memory(kvs[:1]), text(9, 3)]]
    with torch.inference_mode():
        batch = Session(b, rows)
        batch.extend([text(4, 4), text(2, 5), text(1, 6)])
        with pytest.raises(ValueError, match="read up to 44 to position 45"):
            batch.rewind([45, 0, 0])
        ends = batch.positions
        batch.rewind([30, ends[1] - 1, 0])
        turns = [text(3, 7), text(2, 8), text(5, 9)]
        batch.read([[turn] for turn in turns])
        left = [[text(40, 1)[:30]], [biased, text(6, 2), text(2, 5)[:1]], []]
        for row, (parts, turn) in enumerate(zip(left, turns, strict=True)):
            torch.testing.assert_close(batch.logits[row], Session(b, [[*parts, turn]]).logits[0], **CLOSE)


REAL = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
"""Widths at which kernels choose between ways to sum, where they have several."""


@pytest.mark.parametrize(
    ("family", "settings"),
    [*((family, {}) for family in FAMILIES), ("llama", REAL), ("qwen2", REAL)],
    ids=[*FAMILIES, "real", "real-biases"],
)
def test_a_row_computes_the_same_bits_in_any_company(family, settings):
    """Prefill, steps and a later turn in bf16: not close, but equal, whoever stands beside it in the batch."""
    b = Backbone(tiny_model(family, **settings).bfloat16(), byte_tokenizer())
    b.pack()
    rows = [[text(n, n)] for n in (5, 130, 40, 64, 1, 77, *range(20, 34))]
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


def test_rows_that_must_not_be_multiplied_together_compute_the_same(make_backbone, monkeypatch):
    """Prompts one by one, and steps of two rows at most, against all at once; with memory and text."""
    b, rows = make_backbone(lora=False), [5, 70, 12, 1, 33]
    prompts = [[text(3, n), placed(b, 20 + n, n, start=3), text(n, n)] for n in rows]
    tokens, turns = torch.tensor(text(len(rows), 9)), [[text(2 + i, i)] for i in range(len(rows))]
    monkeypatch.setattr("sac_rag.compress.session.BATCH_TOKENS", 2)
    numbers = []
    walk = b.walk

    def counting(ids, *args, **settings):
        numbers.append(len(ids))
        return walk(ids, *args, **settings)

    monkeypatch.setattr(b, "walk", counting)
    found = []
    with torch.inference_mode():
        for steady in (True, False):
            monkeypatch.setitem(b.__dict__, "is_batch_invariant", steady)
            session = Session(b, prompts)
            found.append([session.logits, session.step(tokens), session.read(turns)])
    assert numbers == [136, 5, 20, 8, 73, 15, 4, 36, 2, 2, 1, 2, 3, 4, 5, 6]
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_kernels_with_several_ways_to_sum_are_found_out(monkeypatch):
    b = Backbone(tiny_llama().bfloat16(), byte_tokenizer())
    linear = F.linear

    def changing(x, weight, bias=None):
        return linear(x, weight, bias) + (x.shape[0] > 32)

    assert Backbone(tiny_llama(), byte_tokenizer()).is_batch_invariant, "measured in bf16 alone"
    monkeypatch.setattr("sac_rag.compress.packed.F.linear", changing)
    assert not b.is_batch_invariant


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(1, 2, 8), (5, 5), (15, 1), (2, 2, 2, 2, 2, 2)], ids=str)
def test_tokens_that_are_read_together_have_the_bits_of_steps(family, sizes):
    """Behind uneven and biased memories, of rows that take turns of unlike length, in bf16 and packed."""
    b = Backbone(tiny_model(family, hidden_size=256).bfloat16(), byte_tokenizer())
    b.pack()
    memory = compose([uneven(b, 90, 1), uneven(b, 40, 2)], b.inv_freq, biases=[0.0, -0.7])
    prompts = [[memory, text(7, 1)], [text(60, 2)], [placed(b, 30, 3), text(3, 3)]][: 16 // max(sizes)]
    with torch.inference_mode():
        steps, together = Session(b, prompts), Session(b, prompts)
        for turn, size in enumerate(sizes):
            said = [text(max(1, size - row), 10 * turn + row) for row in range(len(prompts))]
            logits = together.extend(said).split([len(row) for row in said])
            for row, (tokens, got) in enumerate(zip(said, logits, strict=True)):
                alone = steps.row(row)
                want = torch.cat([alone.step(torch.tensor([t])) for t in tokens])
                assert torch.equal(got, want) and torch.equal(together.logits[row], want[-1])
            steps.read([[row] for row in said])
            assert together.positions == steps.positions


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


# -- memories whose heads keep unlike numbers of tokens ------------------------------------------------------------


@pytest.mark.parametrize("tail", [1, 9, 70])
@pytest.mark.parametrize("seed", range(4))
def test_uneven_memory_is_read_as_in_training(make_backbone, seed, tail):
    """Prefill and steps, beyond the end of a block, against `Backbone.read` of memory and text at once."""
    b = make_backbone(lora=False)
    memory = compose([uneven(b, 150, seed), uneven(b, 40, seed + 9)], b.inv_freq)
    tokens = text(tail + BLOCK + 5, seed)
    with torch.inference_mode():
        want = b.read([memory], [Reading(torch.tensor(tokens), torch.arange(tail - 1, len(tokens)), 0)])
        session = Session(b, [[memory, tokens[:tail]]])
        got = [session.logits, *(session.step(torch.tensor([t])) for t in tokens[tail:])]
    torch.testing.assert_close(torch.cat(got), want, atol=1e-5, rtol=1e-4)
    mean = memory.keys.shape[0] / memory.counts.numel() + len(tokens)
    assert session.slots == round(mean) and session.positions == [190 + len(tokens)]


def test_uneven_memories_stand_anywhere_in_a_prompt(make_backbone):
    b = make_backbone(lora=False)
    first, second = placed(b, 70, 1, start=3), placed(b, 30, 2, start=73)
    parts = [text(3, 1), first, second, [], text(8, 2), placed(b, 90, 3, start=111), text(2, 3), text(4, 4)]
    with torch.inference_mode():
        session = Session(b, [parts])
        torch.testing.assert_close(session.logits[0], token_by_token(b, parts), atol=1e-5, rtol=1e-4)
        more = [placed(b, 20, 4, start=207), text(5, 5)]
        session.read([more])
        torch.testing.assert_close(session.logits[0], token_by_token(b, parts + more), atol=1e-5, rtol=1e-4)
        session.step(torch.tensor([7]))
        torch.testing.assert_close(session.logits[0], token_by_token(b, [*parts, *more, [7]]), atol=1e-5, rtol=1e-4)


def test_a_layer_that_keeps_nothing_holds_its_tokens_only(make_backbone):
    b = make_backbone(lora=False)
    memory = placed(b, 300, 0)
    session = Session(b, [[memory, text(5, 1)]])
    held = [keys.shape[2] for keys, _ in session._cache]
    want = [-(-(n + 5) // BLOCK) * BLOCK for n in memory.counts.amax(1).tolist()]
    assert held == want and min(held) == BLOCK < 300 < max(held)


def test_a_row_taken_out_takes_up_what_it_needs(make_backbone):
    """Layers are as long as their fullest head, and no longer for the rows that stood beside it."""
    b = make_backbone(lora=False)
    memory = placed(b, 90, 0)
    batch = Session(b, [[memory, text(5, 1)], [text(900, 2)]])
    needed = [-(-(n + 5) // BLOCK) * BLOCK for n in memory.counts.amax(1).tolist()]
    assert batch.row(0).held == round(sum(needed) / len(needed)) > batch.row(0).slots
    assert batch.row(1).held == -(-900 // BLOCK) * BLOCK
    assert batch.held >= 2 * 900


def test_rows_with_uneven_memory_compute_the_same_bits_in_any_company():
    """Prefill, steps, a later turn, rows that join and leave: equal, not close, to the same rows alone."""
    b = wide()
    every = uneven(b, 80, 1)
    even = AnchorKV.even(*torch.randn(2, *b.kv_shape[:2], 25, 64).bfloat16(), torch.arange(0, 100, 4), 100)
    rows = [
        [compose([uneven(b, 200, 0)], b.inv_freq), text(40, 1)],
        [text(90, 2)],
        [text(5, 3), compose([every, even], b.inv_freq, start=5), text(7, 4)],
        [compose([even], b.inv_freq), text(31, 5)],
        [placed(b, 64, 2), text(64, 6), placed(b, 10, 3, start=128), text(1, 7)],
    ]
    with torch.inference_mode():
        alone = [Session(b, [row]) for row in rows]
        together = Session(b, rows[:3])
        together.join(Session(b, rows[3:]))

        def check() -> None:
            assert torch.equal(together.logits, torch.cat([s.logits for s in alone]))
            assert together.positions == [p for s in alone for p in s.positions]

        def step(seed: int) -> None:
            tokens = torch.tensor(text(len(alone), seed))
            together.step(tokens)
            for i, s in enumerate(alone):
                s.step(tokens[i : i + 1])
            check()

        check()
        for n in range(BLOCK):
            step(30 + n)
        together.keep([4, 0, 2])
        alone = [alone[i] for i in (4, 0, 2)]
        turns = [
            [placed(b, 50, 10 + i, start=at), text(3 + i, 60 + i)] if i else [text(4, 60)]
            for i, at in enumerate(together.positions)
        ]
        together.read(turns)
        for s, turn in zip(alone, turns, strict=True):
            s.read([turn])
        check()
        step(200)
        taken = together.row(1)
        assert taken.slots == alone[1].slots
        assert torch.equal(taken.step(torch.tensor([9])), alone[1].step(torch.tensor([9])))


def test_heads_go_together_where_that_saves_time():
    """Each head once and in order, a call fewer for at most `SLOTS_PER_CALL` slots too many."""
    for fills in ([70], [70, 80], [80, 80, 80], [70, 80, 3000], [3000, 70, 80], [70, 3000, 80], [1, 300, 600, 900]):
        found = _near(fills)
        assert [h for heads, _ in found for h in range(heads.start, heads.stop)] == list(range(len(fills)))
        assert [most for _, most in found] == [max(fills[heads]) for heads, _ in found]
        spared = sum(most * len(fills[heads]) for heads, most in found) - sum(fills)
        assert spared <= SLOTS_PER_CALL * (len(fills) - len(found))
    assert _near([70, 80, 3000]) == [(slice(0, 2), 80), (slice(2, 3), 3000)]
    assert _near([200, 60, 230]) == [(slice(0, 3), 230)]


@pytest.mark.parametrize("cuts", [(1,), (30,), (63, 64), (7, 90, 139)], ids=str)
def test_text_behind_uneven_memory_has_the_same_bits_however_it_was_read(cuts):
    b = wide(num_key_value_heads=1)
    front = [text(10, 2), placed(b, 40, 1, start=10)]
    prompt = text(140, 1)
    with torch.inference_mode():
        whole = Session(b, [[*front, prompt]])
        parts = Session(b, [[*front, prompt[: cuts[0]]]])
        for start, end in zip(cuts, (*cuts[1:], 140), strict=True):
            parts.read([[prompt[start:end]]])
        steps = Session(b, [front[:1]])
        steps.read([[front[1], prompt[: cuts[0]]]])
        for token in prompt[cuts[0] :]:
            steps.step(torch.tensor([token]))
    assert torch.equal(parts.logits, whole.logits) and torch.equal(steps.logits, whole.logits)


@pytest.mark.parametrize("keep", [0, 4, 10, 60, 63, 70, 90, 94, 102])
def test_a_rewound_session_is_a_fresh_one(keep):
    """In front of uneven memories, between and behind them, and at their ends."""
    b = wide()
    parts = [text(10, 1), placed(b, 50, 1, start=10), text(10, 2), placed(b, 20, 2, start=70), text(12, 3)]
    left, at = [], 0
    for part in parts:
        end = part.next_position if isinstance(part, Memory) else at + len(part)
        if at < keep:
            left.append(part if end <= keep else part[: keep - at])
        at = end
    more = [placed(b, 30, 3, start=keep), text(9, 4)]
    with torch.inference_mode():
        session = Session(b, [parts])
        for n in range(70):
            session.step(torch.tensor(text(1, n)))
        session.rewind([keep])
        assert session.positions == [keep]
        fresh = Session(b, [[*left, *more]])
        session.read([more])
        assert torch.equal(session.logits, fresh.logits) and session.slots == fresh.slots
        tokens = torch.tensor([5])
        assert torch.equal(session.step(tokens), fresh.step(tokens))
        session.rewind([keep + 30])
        session.read([[text(9, 4)]])
        assert torch.equal(session.logits, Session(b, [[*left, *more]]).logits)


def test_a_session_rewinds_to_places_that_it_has_read(make_backbone):
    b = make_backbone(lora=False)
    session = Session(b, [[text(10, 1), placed(b, 100, 1, start=10), text(10, 2)]])
    for position in (-1, 121):
        with pytest.raises(ValueError, match=f"to position {position}"):
            session.rewind([position])
    for position in (11, 109):
        with pytest.raises(ValueError, match="inside the memory that begins at 10"):
            session.rewind([position])
    assert session.positions == [120]
    session.rewind([120])
    session.rewind([10])
    with pytest.raises(ValueError, match="cannot rewind"):
        session.rewind([110])
