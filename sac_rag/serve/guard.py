"""What is looked at before any route: hosts, keys, sizes of bodies; and the headers that every reply carries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sac_rag.serve.errors import ApiError
from sac_rag.serve.settings import LOCAL

if TYPE_CHECKING:
    from sac_rag.serve.door import Served

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs what this server sends and speaks to this server, and nothing else."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DRAINED = 8
"""Bodies of up to so many times the limit are read and thrown away before they are refused: a client that is cut off
while it sends sees a broken connection, not the reason."""
DRAIN_S = 30.0
CLOSED = ("/v1/", "/metrics", "/mcp")
"""Beginnings of paths that are for those with keys."""


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, served: Served) -> None:
        self.app, self.served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers, limit = Headers(scope=scope), self.served.limits.body_bytes
        try:
            self._check_host(headers)
            if scope["path"].startswith(CLOSED):
                client = scope.get("client")
                scope["sac_key"] = self.served.enter(headers, client[0] if client else "")
        except ApiError as refusal:
            await refusal.response()(scope, receive, with_headers)
            return
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > limit:
            if int(told) <= limit * DRAINED and "expect" not in headers:
                await _drain(receive)
            await too_large(limit).response()(scope, receive, with_headers)
            return
        taken = 0

        async def limited() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:  # of unknown length
                    raise too_large(limit)
            return message

        await self.app(scope, limited, with_headers)

    def _check_host(self, headers: Headers) -> None:
        """A page of the web must not ask in its visitor's name where no key is needed: it would come by a name of its
        own that leads here, or say where it is from."""
        if self.served.keys is not None or not self.served.limits.local:
            return
        host = _name(headers.get("host", ""))
        if host not in LOCAL:
            message = f"this server was asked as {host!r}; without keys it answers to localhost alone"
            raise ApiError(421, "wrong_host", message)
        origin = headers.get("origin")
        if origin is not None and _name(origin.partition("://")[2]) not in LOCAL:
            raise ApiError(403, "wrong_origin", f"pages of {origin!r} may not ask this server: it has no keys")


def too_large(limit: int) -> ApiError:
    return ApiError(
        413, "body_too_large", f"the body is over {limit:,} bytes: send less at once, or raise --body-bytes"
    )


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _drain(receive: Receive) -> None:
    try:
        async with asyncio.timeout(DRAIN_S):
            while (await receive()).get("more_body"):
                pass
    except TimeoutError:
        return
