"""Answers of many threads as one batch: equal to answers alone, cancelled and failed ones apart, turns that go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import torch

from sac_rag.answer.prompt import Prompt, Recall
from sac_rag.answer.reader import Reader, Row, Sampling
from sac_rag.answer.service import Service
from sac_rag.compress.session import BLOCK
from sac_rag.config import AskConfig
from sac_rag.errors import ConfigError, LibraryCorrupt
from tests.compress.test_session import uneven
from tests.laws.test_memory_laws import ids


def text(n: int, seed: int) -> list[int]:
    return ids(n, seed=seed).tolist()


@pytest.fixture
def setting(make_sac):
    method = make_sac(trained=True)
    kvs = [*method.compress([text(80, 80)], 5.0), uneven(method.backbone, 40, 1)]
    reader = Reader(method.backbone, [2])
    lock = threading.RLock()

    @contextlib.contextmanager
    def busy():
        with lock:
            yield

    return method, kvs, reader, Service(reader, busy, max_rows=4)


def recall(method, kvs, *, key="a", start=0, loads=None):
    placed = method.memory(kvs, start=start)

    def load():
        if loads is not None:
            loads.append(key)
        return method.memory(kvs, start=start)

    return Recall(key, start, placed.next_position, placed.slots, placed.source_len, load)


def test_many_threads_get_what_each_would_get_alone(setting):
    method, kvs, reader, service = setting
    prompts = [Prompt((recall(method, kvs[: 1 + i % 2], key=i % 2), text(3 + i, i))) for i in range(12)]
    sampling = [Sampling(max_new_tokens=4 + i, temperature=0.8 * (i % 3 == 0), seed=i) for i in range(12)]
    want = [reader.generate([p], s)[0] for p, s in zip(map(loaded, prompts), sampling, strict=True)]
    got = {}

    def ask(i):
        generation = service.submit(prompts[i], sampling[i])
        got[i] = (list(generation), generation.completion)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    for i, completion in enumerate(want):
        assert got[i][0] == completion.token_ids == got[i][1].token_ids
        assert got[i][1].logprob == pytest.approx(completion.logprob, abs=1e-4)


def loaded(prompt: Prompt) -> Prompt:
    return Prompt(tuple(prompt.after(0)))


def test_more_requests_than_rows_wait_their_turn(setting):
    *_, reader, service = setting
    prompts = [Prompt((text(5, i),)) for i in range(9)]
    generations = [service.submit(p, Sampling(max_new_tokens=6)) for p in prompts]
    want = [reader.generate([p], Sampling(max_new_tokens=6))[0].token_ids for p in prompts]
    assert [list(g) for g in generations] == want


def test_requests_at_once_are_one_batch_up_to_the_limit(setting, monkeypatch):
    *_, service = setting
    rows, advance = [], service._decoding.advance
    monkeypatch.setattr(service._decoding, "advance", lambda: rows.append(len(service._decoding.rows)) or advance())
    with service._busy():  # nothing is computed before all are there
        six = Sampling(max_new_tokens=6, min_new_tokens=6)
        generations = [service.submit(Prompt((text(5, i),)), six) for i in range(8)]
    assert [len(list(g)) for g in generations] == [6] * 8
    assert max(rows) == service.max_rows == 4
    assert len(rows) < 8 * 5 / 2  # one by one, every answer would take five passes behind its first token


def test_a_failed_prompt_fails_alone(setting):
    method, kvs, reader, service = setting

    def broken():
        raise LibraryCorrupt("the memory is damaged")

    good = Prompt((recall(method, kvs), text(4, 1)))
    bad = Prompt((Recall("b", 0, 9, 3, 9, broken), text(4, 1)))
    misplaced = Prompt((text(2, 1), recall(method, kvs), text(4, 1)))
    one, two = service.submit(good, Sampling(max_new_tokens=5)), service.submit(bad, Sampling(max_new_tokens=5))
    assert list(one) == reader.generate([loaded(good)], Sampling(max_new_tokens=5))[0].token_ids
    with pytest.raises(LibraryCorrupt, match="damaged"):
        next(two)
    with pytest.raises(Exception, match="stands at 2"):
        next(service.submit(misplaced, Sampling()))
    with service._busy():  # nothing is computed before both are there
        both = [service.submit(p, Sampling(max_new_tokens=5)) for p in (misplaced, good)]
    assert list(both[1]) == reader.generate([loaded(good)], Sampling(max_new_tokens=5))[0].token_ids
    with pytest.raises(Exception, match="stands at 2"):
        next(both[0])


def test_a_dropped_generation_leaves_the_batch(setting):
    *_, service = setting
    long = service.submit(Prompt((text(5, 1),)), Sampling(max_new_tokens=1_000_000))
    next(long)
    del long
    other = service.submit(Prompt((text(5, 2),)), Sampling(max_new_tokens=5))
    assert len(list(other)) <= 5
    deadline = threading.Event()
    for _ in range(200):
        if not service._under_way:
            break
        deadline.wait(0.05)
    assert not service._under_way


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", -1), ("temperature", float("nan")), ("temperature", -1.0), ("top_p", -0.1), ("seed", 2**64)],
)
def test_settings_that_cannot_be_followed_stop_at_whoever_made_them(name, value):
    with pytest.raises(ConfigError, match=str(value)):
        Sampling(**{"temperature": 1.0, name: value})
    with pytest.raises(ConfigError, match=str(value)):
        AskConfig(**{"temperature": 1.0, name: value})


def test_cancelling_what_waits_ends_it_for_whoever_listens(setting):
    *_, service = setting
    under_way = [
        service.submit(Prompt((text(5, i),)), Sampling(max_new_tokens=1_000_000, min_new_tokens=1_000_000))
        for i in range(service.max_rows)
    ]
    assert all(isinstance(next(g), int) for g in under_way)
    waiting, heard = service.submit(Prompt((text(5, 9),)), Sampling()), []
    listener = threading.Thread(target=lambda: heard.append(list(waiting)), daemon=True)
    listener.start()
    waiting.cancel()
    listener.join(timeout=20)
    for generation in under_way:
        generation.cancel()
    assert heard == [[]]


def test_a_conversation_goes_on_without_reading_or_loading_again(setting):
    method, kvs, reader, service = setting
    loads = []
    front = recall(method, kvs, loads=loads)
    script = text(20, 1)
    read = []
    for turn in range(8):
        prompt = Prompt((front, list(script)))
        generation = service.submit(prompt, Sampling(max_new_tokens=6), keep=True)
        answer = list(generation)
        fresh = reader.generate([loaded(prompt)], Sampling(max_new_tokens=6))[0]
        assert answer == fresh.token_ids
        read.append(prompt.tokens + prompt.slots - generation.reused)
        script += [*answer, *text(7, 100 + turn)]
    # The cut answer's last token was chosen but not read: a turn reads it and the new message.
    assert read[1:] == [8] * 7 and read[0] == 20 + front.slots
    assert loads.count("a") == 1 + 8  # once by the service, once by each fresh check


def test_an_edited_history_goes_on_from_what_is_common(setting):
    method, kvs, reader, service = setting
    front = recall(method, kvs)
    first = Prompt((front, text(30, 1)))
    list(service.submit(first, Sampling(max_new_tokens=4), keep=True))
    edited = Prompt((front, [*text(30, 1)[:18], *text(9, 5)]))
    generation = service.submit(edited, Sampling(max_new_tokens=4), keep=True)
    assert list(generation) == reader.generate([loaded(edited)], Sampling(max_new_tokens=4))[0].token_ids
    assert generation.reused == front.slots + 18
    other = Prompt((recall(method, kvs, key="other"), text(30, 1)))
    generation = service.submit(other, Sampling(max_new_tokens=4), keep=True)
    list(generation)
    assert generation.reused == 0


def test_conversations_that_begin_alike_keep_a_cache_each(setting):
    *_, reader, service = setting
    system, scripts = text(20, 1), [text(9, 2), text(9, 3)]
    for turn in range(3):
        for i, script in enumerate(scripts):
            prompt = Prompt(([*system, *script],))
            generation = service.submit(prompt, Sampling(max_new_tokens=4), keep=True)
            answer = list(generation)
            assert answer == reader.generate([prompt], Sampling(max_new_tokens=4))[0].token_ids
            # All but the cut answer's last token, and the message behind it.
            assert generation.reused == (prompt.tokens - 8 if turn else 20 * i)
            scripts[i] = [*script, *answer, *text(7, 10 * turn + i)]
    assert len(service._kept) == 2


def test_a_history_without_its_later_memory_goes_on_in_front_of_it(setting):
    method, kvs, reader, service = setting
    front = recall(method, kvs)
    later = recall(method, kvs[1:], key="later", start=front.next_position + 20)
    list(service.submit(Prompt((front, text(20, 1), later, text(5, 2))), Sampling(max_new_tokens=4), keep=True))
    without = Prompt((front, [*text(20, 1), *text(6, 3)]))
    generation = service.submit(without, Sampling(max_new_tokens=4), keep=True)
    assert list(generation) == reader.generate([loaded(without)], Sampling(max_new_tokens=4))[0].token_ids
    assert generation.reused == front.slots + 20


def test_kept_conversations_are_bounded(setting):
    *_, service = setting
    service.kept_slots = 200
    for i in range(6):
        list(service.submit(Prompt((text(40, i),)), Sampling(max_new_tokens=3), keep=True))
    assert [k.slots for k in service._kept] == [BLOCK] * 3


def test_async_streams_do_not_block_the_loop(setting):
    method, kvs, reader, service = setting
    prompts = [Prompt((recall(method, kvs), text(4 + i, i))) for i in range(6)]
    want = [reader.generate([loaded(p)], Sampling(max_new_tokens=8))[0].token_ids for p in prompts]

    async def one(p):
        return [t async for t in service.stream(p, Sampling(max_new_tokens=8))]

    async def left_early():
        async for _ in service.stream(prompts[0], Sampling(max_new_tokens=100_000)):
            break

    async def main():
        await left_early()
        return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(main()) == want


def test_a_loop_that_is_gone_leaves_the_service_to_others(setting):
    *_, service = setting

    async def left_behind():
        stream = service.stream(Prompt((text(5, 1),)), Sampling(max_new_tokens=100_000, min_new_tokens=100_000))
        await anext(stream)
        return stream

    gone = asyncio.run(left_behind())
    assert len(list(service.submit(Prompt((text(5, 2),)), Sampling(max_new_tokens=5, min_new_tokens=5)))) == 5
    gone.cancel()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_answer_ends_before_its_least_length(temperature):
    even = torch.tensor([0.4, 0.3, 0.3]).log()
    for seed in range(20):
        row = Row(Sampling(max_new_tokens=8, min_new_tokens=3, temperature=temperature, seed=seed))
        for stop in (1, 0, 1):  # unlikely, likely
            row.choose(even, 0, frozenset({stop}))
        assert len(row.completion.token_ids) == 3 and not row.completion.ended


def test_a_closed_service_ends_its_answers_and_takes_no_more(setting):
    method, kvs, _, service = setting
    generation = service.submit(Prompt((recall(method, kvs), text(4, 1))), Sampling(max_new_tokens=4000))
    next(generation)
    thread = service._thread
    service.close()
    assert not thread.is_alive()
    assert len(list(generation)) < 3999
    with pytest.raises(RuntimeError, match="closed"):
        service.submit(Prompt((text(4, 1),)), Sampling())
