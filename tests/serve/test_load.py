"""Many at once, clients that vanish, time limits, and an orderly end."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from sac_rag import SacRag
from tests.serve.conftest import Live, served, wait_for

LONG = {"max_tokens": 1000, "sac": {"k": 1}}


def ask(live: Live, question: str, **fields: Any) -> dict[str, Any]:
    return {"model": "three", "messages": [{"role": "user", "content": question}], **fields}


def streamed(live: Live, question: str, **fields: Any) -> str:
    text = ""
    with (
        live.client() as client,
        client.stream("POST", "/v1/chat/completions", json=ask(live, question, stream=True, **fields)) as reply,
    ):
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content", "")
    return text


def test_sixteen_streams_at_once_are_those_of_ask(live: Live) -> None:
    questions = [f"What is said of the {w}?" for w in "Moon Sun canal bridge rooster lakes tides miles".split()]
    want = [live.rag.ask(q, max_new_tokens=20, k=1 + i % 3).text for i, q in enumerate(questions)]
    got: dict[int, str] = {}

    def one(i: int) -> None:
        got[i] = streamed(live, questions[i % 8], max_tokens=20, sac={"k": 1 + i % 8 % 3})

    threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert [got[i] for i in range(16)] == want * 2
    wait_for(
        lambda: live.rag.load == (0, 0) and live.pool.under_way == 0
    )  # a client hears the end before the row is free


class Steps:
    """Counts the tokens that the batch makes, and holds each back a little."""

    def __init__(self, rag: SacRag, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> None:
        self.count = 0
        decoding = rag.engine.service._decoding
        advance = decoding.advance

        def step() -> Any:
            time.sleep(seconds)
            self.count += 1
            return advance()

        monkeypatch.setattr(decoding, "advance", step)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_vanishes_frees_its_row_within_two_steps(
    live: Live, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    live.rag.ask("warm", max_new_tokens=1)
    steps = Steps(live.rag, monkeypatch, seconds=0.2)
    body = json.dumps(ask(live, "What is said of the Moon?", stream=stream, **LONG)).encode()
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: live.rag.load[0] == 1 and steps.count > 2)
    gone = steps.count
    wait_for(lambda: live.rag.load == (0, 0))
    assert steps.count <= gone + 2
    wait_for(lambda: live.pool.under_way == 0)
    metrics = httpx.get(f"{live.url}/metrics").text
    assert 'sac_answers_total{how="cancelled",library="three"} 1.0' in metrics


def test_one_that_waits_for_a_row_and_vanishes_is_never_read(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    live.rag.ask("warm", max_new_tokens=1)
    monkeypatch.setattr(live.rag.engine.service, "max_rows", 1)
    Steps(live.rag, monkeypatch)
    first = threading.Thread(target=streamed, args=(live, "What is said of the Moon?"), kwargs={"max_tokens": 30})
    first.start()
    wait_for(lambda: live.rag.load[0] == 1)
    with pytest.raises(httpx.ReadTimeout), live.client() as client:
        wait = httpx.Timeout(5, read=0.2)
        client.post("/v1/chat/completions", json=ask(live, "And of the Sun?", **LONG), timeout=wait)
    wait_for(lambda: live.pool.under_way == 1 and live.rag.load == (1, 0))
    first.join(timeout=60)


def test_an_answer_that_takes_too_long_ends_with_its_reason(open_rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    open_rag.ask("warm", max_new_tokens=1)
    Steps(open_rag, monkeypatch)
    with served(open_rag, timeout=0.5) as live, live.client() as client:
        late = client.post("/v1/chat/completions", json=ask(live, "What is said of the Moon?", **LONG))
        assert late.status_code == 504
        assert late.json()["error"]["code"] == "timeout" and "within 0.5 s" in late.json()["error"]["message"]
        with client.stream(
            "POST", "/v1/chat/completions", json=ask(live, "What is said of the Moon?", stream=True, **LONG)
        ) as reply:
            lines = [line for line in reply.iter_lines() if line]
        assert json.loads(lines[-2][6:])["error"]["code"] == "timeout" and lines[-1] == "data: [DONE]"
        wait_for(lambda: open_rag.load == (0, 0))


def test_more_than_may_wait_are_sent_away(open_rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    open_rag.ask("warm", max_new_tokens=1)
    Steps(open_rag, monkeypatch)
    with served(open_rag, concurrent=1) as live, live.client() as client:
        first = threading.Thread(target=streamed, args=(live, "What is said of the Moon?"), kwargs={"max_tokens": 30})
        first.start()
        wait_for(lambda: open_rag.load[0] == 1)
        refused = client.post("/v1/chat/completions", json=ask(live, "And of the Sun?"))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "too_busy"
        first.join(timeout=60)


def test_answers_under_way_are_whole_when_the_server_is_told_to_stop(
    open_rag: SacRag, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = open_rag.ask("What is said of the Moon?", max_new_tokens=12, k=1).text
    Steps(open_rag, monkeypatch)
    got: list[str] = []
    with served(open_rag) as live:
        fields = {"max_tokens": 12, "sac": {"k": 1}}
        first = threading.Thread(target=lambda: got.append(streamed(live, "What is said of the Moon?", **fields)))
        first.start()
        wait_for(lambda: open_rag.load[0] == 1)
        live.server.should_exit = True
        first.join(timeout=60)
    assert got == [want]
    assert live.pool.closing
    with pytest.raises(Exception, match="closed"):
        open_rag.library.documents()


def test_changes_under_way_are_whole_when_the_server_stops(open_rag: SacRag, three: Path) -> None:
    with served(open_rag) as live, live.client() as client:
        done = client.post("/v1/libraries/three/documents", json={"documents": [{"document": "n", "text": "A note."}]})
        assert done.json()["added"] == 1
    with SacRag.open(three) as again:
        assert [d.uri for d in again.library.documents()] == ["bridge.md", "canal.md", "n", "tides.md"]
