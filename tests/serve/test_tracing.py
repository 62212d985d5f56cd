"""Spans of requests: whose child each is, what it tells, and that no text is among it."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason='tracing is an extra: pip install "sac-rag[otel]"')

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sac_rag import SacRag
from sac_rag.errors import ConfigError
from sac_rag.serve import tracing
from sac_rag.serve.keys import Keys
from sac_rag.serve.settings import ServeConfig
from sac_rag.serve.tracing import Tracing
from tests.serve.conftest import TEXTS, Live, served, wait_for
from tests.serve.test_load import LONG, Steps, ask

QUESTION = "Who crossed the Brooklyn Bridge with a rooster?"
CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
CHAT = "/v1/chat/completions"


class Traces:
    """A server that is traced, and what it has traced."""

    def __init__(self, live: Live, exporter: InMemorySpanExporter) -> None:
        self.live, self._exporter = live, exporter

    def spans(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """(span of the one request, those below it), once it has ended."""
        wait_for(lambda: any(s.kind is SpanKind.SERVER for s in self._exporter.get_finished_spans()))
        found = self._exporter.get_finished_spans()
        (request,) = (s for s in found if s.kind is SpanKind.SERVER)
        below = [s for s in found if s is not request]
        assert request.context is not None
        for span in below:
            assert span.parent is not None and span.parent.span_id == request.context.span_id
            assert span.context is not None and span.context.trace_id == request.context.trace_id
            assert request.start_time and request.end_time and span.start_time and span.end_time
            assert request.start_time - 10**6 <= span.start_time <= span.end_time <= request.end_time + 10**6
        self._exporter.clear()
        return request, below

    def told(self) -> str:
        """All that has been exported, as text."""
        return " ".join(s.to_json() for s in self._exporter.get_finished_spans())


@contextlib.contextmanager
def traced(rag: SacRag, keys: Keys | None = None, *, texts: bool = False, **settings: Any) -> Iterator[Traces]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with served(rag, keys, tracing=Tracing(provider, texts=texts), **settings) as live:
        yield Traces(live, exporter)


@pytest.fixture
def traces(open_rag: SacRag) -> Iterator[Traces]:
    with traced(open_rag) as found:
        yield found


def names(spans: list[ReadableSpan]) -> list[str]:
    return [s.name for s in sorted(spans, key=lambda s: s.start_time or 0)]


def about(spans: list[ReadableSpan], name: str) -> dict[str, Any]:
    (found,) = (s for s in spans if s.name == name)
    return dict(found.attributes or {})


def test_a_plain_request(traces: Traces) -> None:
    with traces.live.client() as client:
        reply = client.post(CHAT, json=ask(traces.live, QUESTION, max_tokens=5, seed=3), headers=CALLER).json()
    request, below = traces.spans()
    assert request.context is not None and request.parent is not None
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.name == f"POST {CHAT}" and request.status.status_code is StatusCode.UNSET
    told, usage = dict(request.attributes or {}), reply["usage"]
    assert {k: told[k] for k in told if k.startswith(("http", "url", "error"))} == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "url.scheme": "http",
    }
    assert told.pop("gen_ai.response.time_to_first_chunk") == reply["sac"]["timings"]["first_token_s"]
    assert {k: told[k] for k in told if k.startswith("gen_ai")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "sac-rag",
        "gen_ai.request.model": "three",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 3,
        "gen_ai.data_source.id": "three",
        "gen_ai.response.model": traces.live.rag.model_name.rpartition("/")[2],
        "gen_ai.response.finish_reasons": (reply["choices"][0]["finish_reason"],),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
    }
    assert names(below) == ["search", "wait", "load", "place", "wait", "prefill", "decode"]
    assert about(below, "search") == {"sac.passages": 3, "gen_ai.operation.name": "retrieval"}
    tokens = {"sac.source_tokens": reply["sac"]["usage"]["source_tokens"]}
    assert about(below, "load")["sac.passages"] == 3 and about(below, "load").items() >= tokens.items()
    slots = reply["sac"]["usage"]["memory_tokens"]
    assert about(below, "place") == {"sac.passages": 3, "sac.slots": slots, **tokens}
    read = usage["prompt_tokens"] - slots
    assert about(below, "prefill") == {"sac.tokens": read, "sac.slots": slots, "sac.rows": 1}
    decoded = about(below, "decode")
    assert 0 < decoded.pop("sac.passes") <= usage["completion_tokens"], "drafts save some"
    assert decoded == {"sac.rows": 1, "sac.tokens": usage["completion_tokens"]}


def test_a_streamed_request_with_turns(traces: Traces) -> None:
    """Memories of a conversation are loaded when the batch has a row, and the search of earlier turns is a step."""
    said = [("user", "What do the tides follow?"), ("assistant", "The Moon."), ("user", QUESTION)]
    body = {"model": "three", "stream": True, "max_tokens": 4, "messages": [{"role": r, "content": c} for r, c in said]}
    with traces.live.client() as client, client.stream("POST", CHAT, json=body) as reply:
        assert "[DONE]" in "".join(reply.iter_text())
    request, below = traces.spans()
    assert request.parent is None
    assert (request.attributes or {})["gen_ai.request.stream"] is True
    assert "error.type" not in (request.attributes or {})
    assert names(below) == ["replay", "search", "wait", "place", "wait", "load", "prefill", "decode"]
    assert about(below, "replay") == {"sac.turns": 1}
    assert about(below, "load")["sac.slots"] == about(below, "prefill")["sac.slots"] > 0


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_cancelled_request(traces: Traces, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    live = traces.live
    live.rag.ask("warm", max_new_tokens=1)
    steps = Steps(live.rag, monkeypatch, seconds=0.1)
    body = json.dumps(ask(live, QUESTION, stream=stream, **LONG)).encode()
    with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2]))) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: live.rag.load[0] == 1 and steps.count > 2)
    request, below = traces.spans()
    assert (request.attributes or {})["error.type"] == "cancelled"
    assert request.status.status_code is StatusCode.UNSET
    assert "gen_ai.usage.output_tokens" not in (request.attributes or {})
    assert names(below)[-2:] == ["prefill", "decode"]
    (decode,) = (s for s in below if s.name == "decode")
    assert decode.start_time and decode.end_time and decode.end_time - decode.start_time > 10**8


def test_an_answer_that_takes_too_long(open_rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    open_rag.ask("warm", max_new_tokens=1)
    Steps(open_rag, monkeypatch)
    for stream in (False, True):
        with traced(open_rag, timeout=0.5) as traces:
            with traces.live.client() as client:
                client.post(CHAT, json=ask(traces.live, QUESTION, stream=stream, **LONG))
            request, below = traces.spans()
            assert (request.attributes or {})["error.type"] == "timeout"
            assert request.status.status_code is StatusCode.ERROR and names(below)[-1] == "decode"
        open_rag = SacRag.open(open_rag.library.path)


def test_refused_requests(open_rag: SacRag, key_file: Any) -> None:
    """They are their senders' fault, so that the span's status is not an error; its type says what was wrong."""
    with traced(open_rag, Keys.read(key_file)) as traces:

        def refused(key: str | None, path: str, body: Any) -> tuple[Any, Any, str]:
            with traces.live.client(key) as client:
                client.post(path, json=body)
            request, below = traces.spans()
            assert not below and request.status.status_code is StatusCode.UNSET and not request.events
            told = request.attributes or {}
            return told["http.response.status_code"], told["error.type"], request.name

        assert refused(None, CHAT, {}) == (401, "no_api_key", "POST")
        assert refused("all", CHAT, ask(traces.live, QUESTION, n=2)) == (400, "unsupported_parameter", f"POST {CHAT}")
        missing = {"question": QUESTION}
        assert refused("all", "/v1/libraries/four/ask", missing) == (
            404,
            "model_not_found",
            "POST /v1/libraries/{library}/ask",
        )
        assert refused("all", "/v1/libraries/three/ask", {}) == (
            400,
            "invalid_request",
            "POST /v1/libraries/{library}/ask",
        )


def test_a_step_that_fails(traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"cannot look for {QUESTION}")

    monkeypatch.setattr(traces.live.rag, "_retrieve", search)
    with traces.live.client() as client:
        assert client.post("/v1/libraries/three/ask", json={"question": QUESTION}).status_code == 500
    assert "rooster" not in traces.told()
    request, below = traces.spans()
    assert request.status.status_code is StatusCode.ERROR
    assert (request.attributes or {})["error.type"] == "internal_error"
    assert names(below) == ["search"] and about(below, "search")["error.type"] == "RuntimeError"


def test_searches_and_embeddings(traces: Traces) -> None:
    with traces.live.client() as client:
        client.post("/v1/libraries/three/search", json={"query": QUESTION, "k": 2})
        request, below = traces.spans()
        told = request.attributes or {}
        assert told["gen_ai.operation.name"] == "retrieval" and told["gen_ai.retrieval.top_k"] == 2
        assert names(below) == ["search"] and about(below, "search")["sac.passages"] == 2
        client.post("/v1/embeddings", json={"model": "three", "input": [QUESTION]})
        request, below = traces.spans()
        told = request.attributes or {}
        assert told["gen_ai.operation.name"] == "embeddings" and not below
        assert told["gen_ai.embeddings.dimension.count"] == traces.live.rag.embedder.dim
        for path in ("/healthz", "/readyz", "/metrics"):
            client.get(path)
        assert not traces.told()


def test_the_tools_of_agents(traces: Traces) -> None:
    call = {"name": "ask", "arguments": {"question": QUESTION, "k": 2}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-06-18"}
    with traces.live.client() as client:
        assert (
            client.post("/mcp", json=body, headers=headers).json()["result"]["structuredContent"]["library"] == "three"
        )
    request, below = traces.spans()
    assert (request.attributes or {})["gen_ai.operation.name"] == "chat"
    assert names(below) == ["search", "wait", "load", "place", "wait", "prefill", "decode"]


@pytest.mark.parametrize("texts", [False, True])
def test_texts_are_told_only_where_that_is_set(open_rag: SacRag, texts: bool) -> None:
    """Neither words of the question and the answer nor of passages, names of documents and metadata."""
    meta = json.dumps({"document": "bridge.md"})
    with traced(open_rag, texts=texts) as traces:
        with traces.live.client() as client:
            asked = {"question": QUESTION, "where": {"team": "land"}, "stop": ["Hudson"]}
            answer = client.post("/v1/libraries/three/ask", json=asked).json()["answer"]
            stream = {**asked, "stream": True, "messages": [{"role": "system", "content": "Speak as a rooster."}]}
            client.post("/v1/libraries/three/ask", json=stream)
            client.post("/v1/libraries/three/ask", json={**asked, "settings": {"placing": "rooster"}})
            client.post("/v1/libraries/three/search", json={"query": QUESTION})
            client.get("/v1/libraries/three/documents", params={"document": "bridge.md"})
            client.put(
                "/v1/libraries/three/documents", params={"document": "x.md", "meta": meta}, content=b"A rooster."
            )
            client.post(CHAT, json=ask(traces.live, QUESTION, max_tokens=5))
        wait_for(lambda: traces.told().count("SpanKind.SERVER") == 7)
        told = traces.told()
        secrets = [*"rooster Brooklyn Hudson bridge.md Roebling land".split(), *TEXTS["bridge.md"].split(". ")]
        found = [s for s in secrets if s in told]
        assert answer and found == ([] if not texts else [s for s in secrets if s not in ("bridge.md", "land")])
        messages = [
            json.loads((s.attributes or {})["gen_ai.input.messages"])
            for s in traces._exporter.get_finished_spans()
            if "gen_ai.input.messages" in (s.attributes or {})
        ]
        wanted = [{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}]
        assert messages == ([wanted] * 4 if texts else [])


def test_spans_are_sent_where_the_environment_says(open_rag: SacRag, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real exporter, to a collector that is a server of ours."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[tuple[str, Any]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                data = gzip.decompress(data)
            got.append((self.path, ExportTraceServiceRequest.FromString(data)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    try:
        with served(open_rag, tracing=Tracing.exporting()) as live, live.client() as client:
            client.post(CHAT, json=ask(live, QUESTION, max_tokens=2))
    finally:
        collector.shutdown()
        collector.server_close()
    ((path, sent),) = got  # the rest is sent when the server ends
    (resource,) = sent.resource_spans
    named = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert path == "/v1/traces" and named["service.name"] == "sac-rag"
    assert {s.name for scope in resource.scope_spans for s in scope.spans} >= {f"POST {CHAT}", "prefill", "decode"}


def test_what_cannot_be_traced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="otel_texts is set and otel is not"):
        ServeConfig(otel_texts=True)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"):
        tracing.check()
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_PROTOCOL")
    tracing.check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "sac-rag\[otel\]"'):
        tracing.check()


def test_a_server_that_does_not_trace_loads_nothing_for_it() -> None:
    code = "import sys, sac_rag.serve.run; print(*sorted(m for m in sys.modules if m.startswith('opentelemetry.')))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert not [m for m in run.stdout.split() if m.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
