"""Errors of requests, in the shape that OpenAI's clients read."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from sac_rag.errors import (
    ConfigError,
    DocumentError,
    LibraryError,
    LibraryFull,
    LibraryLocked,
    LibraryNotFound,
    SacError,
)

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES: tuple[tuple[type[Exception], int, str, str | None], ...] = (
    (DocumentError, 422, "unreadable_document", None),
    (ConfigError, 400, "invalid_setting", None),
    (LibraryLocked, 409, "library_locked", "another process writes to this library: try again later"),
    (LibraryFull, 507, "disk_full", "no room is left to write: what was stored before is intact, this was not stored"),
    (LibraryNotFound, 503, "library_gone", "the library is gone"),
    (LibraryError, 500, "library_error", "the library cannot be used as it is; the server's log says why"),
    (SacError, 500, "internal_error", "the server failed at this request; its log says how"),
    (TimeoutError, 504, "timeout", None),
)
"""Kind, status, code, and what is told in place of words of ours that name places on the server's disk."""
_log = logging.getLogger(__name__)


class ApiError(HTTPException):
    """A refusal that its client can act on."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.message, self.param = code, message, param

    @property
    def body(self) -> dict[str, Any]:
        """{"error": {…}}, as OpenAI's."""
        kind = _KINDS.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return _Refusal(self)


class _Refusal(JSONResponse):
    """The response to a request that is refused or has failed; the trace of the request is told why."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body, error.status_code, error.headers)
        self.code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (trace := scope.get("sac_trace")) is not None:
            trace.failed(self.code, fault=self.status_code >= 500)
        await super().__call__(scope, receive, send)


def code_of(error: BaseException) -> tuple[int, str]:
    """(status, code) that a client is told of an error."""
    if isinstance(error, ApiError):
        return error.status_code, error.code
    for kind, status, code, _ in _CODES:
        if isinstance(error, kind):
            return status, code
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return error.status_code, code
    return 500, "internal_error"


def of(error: BaseException) -> ApiError:
    """What befell a request, as its client is told; of faults of ours no more than that there was one."""
    if isinstance(error, ApiError):
        return error
    status, code = code_of(error)
    for kind, _, _, told in _CODES:
        if isinstance(error, kind):
            if told is not None:
                _log.warning("%s: %s", code, error)
            return ApiError(status, code, told or str(error) or code)
    if isinstance(error, HTTPException):
        return ApiError(status, code, str(error.detail))
    return ApiError(status, code, "the server failed at this request; its log says how")


async def respond(request: Request, error: Exception) -> JSONResponse:
    """A handler of exceptions."""
    return of(error).response()
