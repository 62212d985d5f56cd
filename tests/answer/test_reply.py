"""One way from tokens to text: stop strings, time limits, cancelling and one account, sync and async alike."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.answer.chat import Message
from sac_rag.answer.reader import Sampling, decode
from sac_rag.answer.tags import PassageRef
from sac_rag.errors import ConfigError
from sac_rag.records import Document, Usage

LONG = Sampling(max_new_tokens=400, min_new_tokens=400)
HI = [Message("user", ("Tell me of herons.",))]


@pytest.fixture
def rag(tiny_config: Any, tmp_path: Path) -> Iterator[SacRag]:
    with SacRag.open(tmp_path / "a.lib", config=tiny_config, create=True) as opened:
        opened.put([Document("river", "The heron of the river waits in shallow water.")])
        yield opened


def under_way(rag: SacRag) -> int:
    service = rag.engine.service
    return len(service._under_way) + len(service._waiting)


def until(condition: Any, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


async def both(rag: SacRag, *arguments: Any, **settings: Any) -> list[tuple[list[str], str, str, Usage]]:
    reply = rag.reply(*arguments, **settings)
    pieces = list(reply)
    out = [(pieces, reply.text, reply.finish_reason, reply.usage)]
    later = await rag.areply(*arguments, **settings)
    pieces = [piece async for piece in later]
    return [*out, (pieces, later.text, later.finish_reason, later.usage)]


async def test_pieces_are_the_text_and_the_account_is_the_prompts(rag: SacRag) -> None:
    (river,) = rag.library.passage_ids("river")
    messages = [Message("user", (PassageRef(river), "\nWho waits?"))]
    sampling = Sampling(max_new_tokens=20, min_new_tokens=20)
    prompt = rag.conversation(messages, sampling)
    want = decode(rag.engine.method.backbone.tokenizer, list(rag.converse(messages, sampling)))
    for pieces, text, reason, usage in await both(rag, messages, sampling):
        assert "".join(pieces) == text == want and all(pieces) and reason == "length"
        assert (usage.anchors, usage.prompt_tokens, usage.completion_tokens) == (prompt.slots, prompt.tokens, 20)
        assert usage.attended == prompt.slots + prompt.tokens and usage.source_tokens == prompt.source_tokens > 0
        assert usage.reused > 0, "the same question was read before"
        assert usage.account() == {
            "attended_tokens": usage.attended,
            "memory_tokens": prompt.slots,
            "source_tokens": prompt.source_tokens,
            "completion_tokens": 20,
            "reused_tokens": usage.reused,
        }


async def test_stop_strings_end_an_answer(rag: SacRag) -> None:
    sampling = Sampling(max_new_tokens=40, min_new_tokens=40)
    whole = rag.reply(HI, sampling)
    list(whole)
    stop = whole.text[5:8]
    for stops in ((stop,), [stop, "never"], stop):
        for pieces, text, reason, usage in await both(rag, HI, sampling, stop=stops):
            assert "".join(pieces) == text == whole.text[: whole.text.index(stop)] and reason == "stop"
            assert usage.completion_tokens < 40
    assert until(lambda: not under_way(rag))


async def test_a_time_limit_holds_also_while_others_are_answered(rag: SacRag) -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match="timeout is"):
            rag.reply(HI, LONG, timeout=wrong)
    with rag.engine.busy():  # the model is taken: no token comes at all
        result: list[Any] = []
        prompt = rag.conversation(HI, LONG)
        reply = rag.reply(prompt, LONG, timeout=0.2)

        def wait() -> None:
            with pytest.raises(TimeoutError, match=r"timeout=0\.2") as late:
                list(reply)
            result.append(late.value)

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(20)
        assert len(result) == 1
        later = await rag.areply(prompt, LONG, timeout=0.2)
        with pytest.raises(TimeoutError, match=r"timeout=0\.2"):
            await later.__anext__()
    assert until(lambda: not under_way(rag)), "what came too late is not written on"
    with pytest.raises(TimeoutError):
        next(rag.reply(HI, LONG, timeout=0))
    assert len(list(rag.reply(HI, Sampling(max_new_tokens=3, min_new_tokens=3), timeout=60))) > 0


async def test_what_is_left_is_not_written_on(rag: SacRag) -> None:
    reply = rag.reply(HI, LONG)
    next(reply)
    del reply
    gc.collect()
    assert until(lambda: not under_way(rag))
    async with aclosing(await rag.areply(HI, LONG)) as later:
        assert await later.__anext__()
    assert until(lambda: not under_way(rag))

    async def eat() -> None:
        async for _ in await rag.areply(HI, LONG):
            pass

    tasks = [asyncio.create_task(eat()) for _ in range(60)]
    await asyncio.sleep(0.3)
    for task in tasks:
        task.cancel()
    assert {type(r) for r in await asyncio.gather(*tasks, return_exceptions=True)} <= {asyncio.CancelledError}
    assert until(lambda: not under_way(rag), 5)
    stream = rag.stream("Who waits?", max_new_tokens=400)
    next(stream)
    stream = None  # type: ignore[assignment]
    gc.collect()
    assert until(lambda: not under_way(rag))


def test_sampling_draws_afresh_unless_it_is_seeded(rag: SacRag) -> None:
    def said(**settings: Any) -> set[str]:
        return {rag.ask("Who waits?", max_new_tokens=12, **settings).text for _ in range(4)}

    assert len(said(temperature=1.0)) > 1 and len(said(temperature=1.0, top_p=0.95)) > 1
    assert len(said(temperature=1.0, seed=3)) == 1 and len(said()) == 1
    several = [rag.reply(HI, Sampling(12, 1.0)) for _ in range(4)]
    assert len({"".join(reply) for reply in several}) > 1


def test_no_request_keeps_a_library_open(rag: SacRag, tiny_config: Any, tmp_path: Path) -> None:
    """The thread that answers holds nothing of what it has answered."""
    import weakref

    from sac_rag.answer.conversation import Conversation

    other = SacRag.open(tmp_path / "b.lib", config=tiny_config, create=True)
    other.put([Document("a", "An otter swims in the lake.")])
    talk = Conversation()
    other.ask("Who swims?", max_new_tokens=3, conversation=talk)
    seen = weakref.ref(other.library)
    del other, talk
    assert until(lambda: gc.collect() is not None and seen() is None, 10)
