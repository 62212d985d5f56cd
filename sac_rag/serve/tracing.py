"""OpenTelemetry spans of requests, by the conventions for HTTP and generative AI, and of their steps below.

Nothing here is used, and the package opentelemetry is not loaded, unless the server is told to trace. The provider is
the server's own, never the process's: what other packages would trace stays untraced. A span holds counts, names of
libraries and settings; texts of questions, answers and passages only where `texts` says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sac_rag import __version__
from sac_rag.answer.steps import Step, Steps
from sac_rag.errors import ConfigError
from sac_rag.records import Answer, Hit
from sac_rag.serve.errors import code_of
from sac_rag.serve.libraries import ServedLibrary, model_name

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from sac_rag.config import AskConfig

NAME = "sac-rag"
"""Of the service, where OTEL_SERVICE_NAME says none, and of the provider of generative AI."""
PROTOCOL = "http/protobuf"
METHODS = frozenset("GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH QUERY".split())
"""Others are written as _OTHER: whoever asks must not choose names of spans."""
UNTRACED = ("/healthz", "/readyz", "/metrics")
"""Paths that are asked every few seconds by whoever runs the server."""


class Tracing:
    """How one server traces: a provider of tracers, and whether texts go into spans."""

    def __init__(self, provider: TracerProvider, *, texts: bool = False) -> None:
        self.provider, self.texts = provider, texts
        self.tracer = provider.get_tracer("sac_rag.serve", __version__)

    @classmethod
    def exporting(cls, *, texts: bool = False) -> Tracing:
        """Spans are sent by OTLP over HTTP; OTEL_EXPORTER_OTLP_ENDPOINT and the other variables of the SDK say where,
        how many and under which name. Raises ConfigError as `check` does."""
        check()
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME, "service.version": __version__}))
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider, texts=texts)

    def close(self) -> None:
        """Send what is not sent yet."""
        self.provider.shutdown()


def check() -> None:
    """ConfigError where the extra `otel` is missing, and where the environment asks for another protocol."""
    for name in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(f'--otel needs {name}: pip install "sac-rag[otel]"')
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    for variable in names:
        if (wanted := os.environ.get(variable, PROTOCOL)) != PROTOCOL:
            raise ConfigError(f"{variable} is {wanted!r}; spans are sent by {PROTOCOL} alone: unset it")


class RequestTrace:
    """The span of one request, and what its routes tell of it."""

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing, self._span = tracing, span
        self._lock, self._steps, self._over = threading.Lock(), [Steps()], False
        self._waits, self._failed = False, False

    @classmethod
    def of(cls, request: Request) -> RequestTrace | None:
        """That of a request; None where nothing is traced."""
        found: RequestTrace | None = request.scope.get("sac_trace")
        return found

    # -- what routes tell --------------------------------------------------------------------------------

    def asked(self, operation: str, served: ServedLibrary, model: str, about: Mapping[str, Any]) -> None:
        """What is asked of which library. about: more attributes of `gen_ai`; None says nothing."""
        self._set(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": NAME,
                "gen_ai.request.model": model,
                "gen_ai.data_source.id": served.name,
                **{f"gen_ai.{name}": value for name, value in about.items()},
            }
        )

    def question(self, served: ServedLibrary, model: str, ask: AskConfig, *, stream: bool, text: str) -> None:
        """A question, or the last message of a conversation, is to be answered."""
        self._waits = True
        about = {
            "response.model": model_name(served.rag),
            "request.stream": stream,
            "request.max_tokens": ask.max_new_tokens,
            "request.temperature": ask.temperature,
            "request.top_p": ask.top_p,
            "request.seed": ask.seed,
        }
        self.asked("chat", served, model, about)
        if self._tracing.texts:
            self._set({"gen_ai.input.messages": _messages("user", text)})

    def took(self, steps: Steps) -> None:
        """What these steps do belongs to this request."""
        with self._lock:
            self._steps.append(steps)

    def answered(self, answer: Answer) -> None:
        """The answer is whole."""
        self._waits, usage = False, answer.usage
        self._set(
            {
                "gen_ai.usage.input_tokens": usage.attended,
                "gen_ai.usage.cache_read.input_tokens": usage.anchors,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.response.finish_reasons": [answer.finish_reason],
                "gen_ai.response.time_to_first_chunk": answer.timings.first_token_s,
                "sac.passages": len(answer.sources),
                "sac.source_tokens": usage.source_tokens,
                "sac.reused_tokens": usage.reused,
                "sac.fidelity": answer.fidelity,
                "sac.fell_back": answer.fell_back,
                "sac.abstained": answer.abstained,
            }
        )
        if self._tracing.texts:
            self._set(
                {"gen_ai.output.messages": _messages("assistant", answer.text, finish_reason=answer.finish_reason)}
            )
            self._set({"gen_ai.retrieval.documents": _documents(answer.sources)})

    @contextlib.contextmanager
    def search(self, served: ServedLibrary, query: str, k: int) -> Iterator[list[Hit]]:
        """A search alone; the block extends the list by what it finds."""
        self.asked("retrieval", served, served.name, {"retrieval.top_k": k})
        found: list[Hit] = []
        with self._steps[0].step("search") as step:
            yield found
            step.counts["passages"] = len(found)
        if self._tracing.texts:
            self._set({"gen_ai.retrieval.query.text": query, "gen_ai.retrieval.documents": _documents(found)})

    def failed(self, code: str, *, fault: bool = False) -> None:
        """The request did not get what it asked for; the first reason stays. fault: it is the server's."""
        from opentelemetry.trace import Status, StatusCode

        with self._lock:
            if self._over:
                return
            if not self._failed:
                self._failed = True
                self._span.set_attribute("error.type", code)
            if fault:
                self._span.set_status(Status(StatusCode.ERROR))

    def raised(self, error: BaseException) -> None:
        """The request ends with this error."""
        status, code = code_of(error)
        self.failed(code, fault=status >= 500)

    # -- its span ----------------------------------------------------------------------------------------

    def _set(self, attributes: Mapping[str, Any]) -> None:
        with self._lock:
            if not self._over:
                self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def end(self) -> None:
        """End the span, and with it those of its steps; what comes later is not told."""
        from opentelemetry.trace import set_span_in_context

        if self._waits:  # its client has gone; the answer is given up behind this
            self.failed("cancelled")
        below = set_span_in_context(self._span)
        with self._lock:
            self._over = True
            if self._span.is_recording():
                offset, now = time.time_ns() - time.perf_counter_ns(), time.perf_counter()
                for step in (s for steps in self._steps for s in steps):
                    self._child(step, below, offset, now)
            self._span.end()

    def _child(self, step: Step, below: Any, offset: int, now: float) -> None:
        from opentelemetry.trace import Status, StatusCode

        began, ended = (round(at * 1e9) + offset for at in (step.began, step.ended or now))
        counts: dict[str, Any] = {f"sac.{name}": value for name, value in step.counts.items()}
        if step.name == "search":
            counts["gen_ai.operation.name"] = "retrieval"
        span = self._tracing.tracer.start_span(step.name, below, attributes=counts, start_time=began)
        if step.error is not None:
            span.set_attribute("error.type", step.error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(max(began, ended))


def searching(
    trace: RequestTrace | None, served: ServedLibrary, query: str, k: int
) -> contextlib.AbstractContextManager[list[Hit]]:
    """For a search alone, traced or not: the block extends the list by what it finds."""
    return contextlib.nullcontext([]) if trace is None else trace.search(served, query, k)


class Traced:
    """ASGI middleware: a span for each request, below that of its caller where that sent a `traceparent`."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self.app, self.tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        name = "HTTP" if method == "_OTHER" else method
        caller = extract(dict(Headers(scope=scope)))
        about = _about(scope, method)
        span = self.tracing.tracer.start_span(name, caller, kind=SpanKind.SERVER, attributes=about)
        trace = scope["sac_trace"] = RequestTrace(self.tracing, span)

        async def heard(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                span.set_attribute("http.response.status_code", status)
                if status >= 500:
                    trace.failed(str(status), fault=True)
            await send(message)

        try:
            await self.app(scope, receive, heard)
        except Exception as error:  # answered by whoever is above
            span.set_attribute("http.response.status_code", 500)
            trace.raised(error)
            raise
        finally:
            if (route := getattr(scope.get("route"), "path", None)) is not None:
                span.set_attribute("http.route", route)
                span.update_name(f"{name} {route}")
            trace.end()


def _about(scope: Scope, method: str) -> dict[str, Any]:
    """What HTTP's conventions say of a request, without its query, which names documents and holds metadata."""
    about: dict[str, Any] = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
    if scope.get("http_version"):
        about["network.protocol.version"] = scope["http_version"]
    if (server := scope.get("server")) is not None:
        about["server.address"] = str(server[0])
        if server[1] is not None:
            about["server.port"] = server[1]
    if (client := scope.get("client")) is not None:
        about["client.address"] = str(client[0])
    if agent := Headers(scope=scope).get("user-agent"):
        about["user_agent.original"] = agent
    return about


def _messages(role: str, text: str, **more: Any) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}], **more}], ensure_ascii=False)


def _documents(hits: Iterable[Hit]) -> str:
    found = [{"id": h.passage.id, "score": h.score, "content": h.passage.text} for h in hits]
    return json.dumps(found, ensure_ascii=False)
