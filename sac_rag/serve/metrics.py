"""What a server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sac_rag.records import Answer
from sac_rag.serve.libraries import ServedLibraries

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one app, in a registry of its own."""

    def __init__(self, libraries: ServedLibraries) -> None:
        self.registry = at = CollectorRegistry()
        self.requests = Counter("sac_requests", "Requests, by route and status.", ["route", "status"], registry=at)
        self.seconds = Histogram(
            "sac_request_seconds", "Seconds of a request.", ["route"], buckets=SECONDS, registry=at
        )
        self.first = Histogram(
            "sac_first_token_seconds",
            "Seconds from question to first token.",
            ["library"],
            buckets=SECONDS,
            registry=at,
        )
        self.tokens = Counter("sac_tokens", "Tokens of answers, by kind.", ["library", "kind"], registry=at)
        self.ended = Counter("sac_answers", "Answers, by how they ended.", ["library", "how"], registry=at)
        self.registry.register(_Gauges(libraries))

    def answered(self, library: str, answer: Answer) -> None:
        """Count a whole answer."""
        how = "abstained" if answer.abstained else answer.finish_reason
        self.ended.labels(library, how).inc()
        self.first.labels(library).observe(answer.timings.first_token_s)
        for kind, count in answer.usage.account().items():
            self.tokens.labels(library, kind.removesuffix("_tokens")).inc(count)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is true now: asked for, never kept."""

    def __init__(self, libraries: ServedLibraries) -> None:
        self.libraries = libraries

    def collect(self) -> Iterator[GaugeMetricFamily]:
        rows = GaugeMetricFamily("sac_rows", "Answers, by model.", labels=["model", "state"])
        sizes = GaugeMetricFamily("sac_library", "Counts of a library.", labels=["library", "of"])
        seen = set()
        for name, served in self.libraries.items():
            rag = served.rag
            if rag.model_name not in seen:
                seen.add(rag.model_name)
                for state, count in zip(("making", "waiting"), rag.load, strict=True):
                    rows.add_metric([rag.model_name, state], count)
            head = rag.newest().head
            for of in ("documents", "passages", "generation"):
                sizes.add_metric([name, of], getattr(head, of))
        yield rows
        yield sizes


class Measured:
    """ASGI middleware: counts and times requests by the route that took them."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # gone before it was answered

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, heard)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
