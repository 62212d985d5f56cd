"""The application: routes, handlers of errors, the page, health, metrics; closed with its libraries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from mcp.server.transport_security import TransportSecuritySettings
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from sac_rag import __version__
from sac_rag.errors import SacError
from sac_rag.serve import chat, documents, embeddings, errors, responses
from sac_rag.serve.answering import Pool
from sac_rag.serve.door import Door, Served
from sac_rag.serve.errors import ApiError
from sac_rag.serve.guard import Guard
from sac_rag.serve.keys import Keys
from sac_rag.serve.libraries import ServedLibraries
from sac_rag.serve.mcp import make
from sac_rag.serve.metrics import Measured, Metrics
from sac_rag.serve.rates import Rates
from sac_rag.serve.settings import ServeConfig
from sac_rag.serve.tracing import Traced, Tracing

STATIC = Path(__file__).parent / "static"
_log = logging.getLogger(__name__)


def create_app(
    libraries: ServedLibraries,
    limits: ServeConfig | None = None,
    keys: Keys | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """An ASGI application that serves these libraries and closes them, and `tracing`, at its end."""
    limits = limits or ServeConfig()
    metrics = Metrics(libraries)
    pool = Pool(limits.concurrent, limits.timeout, metrics)
    served = Served(libraries, limits, keys, pool, metrics, Rates(limits.requests_per_minute))

    agents = make(libraries, over_http=True)
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)  # the guard sees to that
    tools = agents.streamable_http_app(
        streamable_http_path="/mcp",
        json_response=True,
        stateless_http=True,
        max_request_body_size=limits.body_bytes,
        transport_security=security,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with agents.session_manager.run():
            yield
        await pool.close()
        libraries.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="sac-rag", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.served = served
    for kind in (HTTPException, SacError, TimeoutError):
        app.add_exception_handler(kind, errors.respond)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    for routes in (chat, responses, embeddings, documents):
        app.include_router(routes.router)
    app.add_api_route("/healthz", _health, include_in_schema=False)
    app.add_api_route("/readyz", _ready, include_in_schema=False)
    app.add_api_route("/metrics", _metrics, include_in_schema=False)
    app.add_api_route("/", _page, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.router.routes.extend(tools.routes)
    app.add_middleware(Guard, served=served)
    app.add_middleware(Measured, metrics=metrics)
    if tracing is not None:
        app.add_middleware(Traced, tracing=tracing)
    return app


async def _invalid(request: Request, error: Any) -> JSONResponse:
    """A body that is no JSON, or not of the shape that is wanted."""
    first = error.errors()[0]
    place = ".".join(str(p) for p in first["loc"][1:]) or None
    message = f"{place or 'the body'}: {first['msg']}"
    return ApiError(400, "invalid_request", message, param=place).response()


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return errors.of(error).response()


async def _page() -> Response:
    return FileResponse(STATIC / "index.html")


async def _health() -> Response:
    """The process lives."""
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Libraries are open and the server is not ending."""
    if request.app.state.served.pool.closing:
        raise ApiError(503, "shutting_down", "the server is ending")
    return JSONResponse({"status": "ready", "libraries": len(request.app.state.served.libraries)})


async def _metrics(request: Request) -> Response:
    door = Door.of(request)
    if door.key.where or door.key.libraries is not None:
        raise ApiError(403, "forbidden", f"key {door.key.name!r} sees a part of this server, metrics tell of all of it")
    return PlainTextResponse(door.served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
