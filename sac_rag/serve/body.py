"""Bodies of requests: one strict reader of JSON for every route.

Python's own takes NaN, keys that stand twice, UTF-16 and lone surrogates. What a proxy in front has looked at would
then be something else than what is done here, and some of it could not be written back.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from sac_rag.foreign import parse_json
from sac_rag.records import unicode_of
from sac_rag.serve.errors import ApiError


def read(text: str | bytes) -> Any:
    """The value of a JSON text, all of its texts valid Unicode. Raises ValueError, also for keys that stand twice."""
    return _unicode(parse_json(text.decode("utf-8") if isinstance(text, bytes) else text, twice=False))


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return unicode_of(value)
    if isinstance(value, list):
        return [_unicode(v) for v in value]
    return {unicode_of(k): _unicode(v) for k, v in value.items()} if isinstance(value, dict) else value


class StrictRequest(Request):
    """One whose JSON is read by `read`."""

    async def json(self) -> Any:
        try:
            return read(await self.body())
        except ValueError as error:
            raise ApiError(400, "invalid_request", f"the body is not taken as JSON: {error}") from None


class StrictRoute(APIRoute):
    """A route whose handler is given a StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly
