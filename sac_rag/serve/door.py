"""What a route may use, for the key that asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request

from sac_rag.serve.answering import Answering, Pool
from sac_rag.serve.errors import ApiError
from sac_rag.serve.keys import EVERYBODY, Key, Keys
from sac_rag.serve.libraries import ServedLibraries, ServedLibrary
from sac_rag.serve.metrics import Metrics
from sac_rag.serve.rates import Rates
from sac_rag.serve.settings import ServeConfig
from sac_rag.serve.tracing import RequestTrace

if TYPE_CHECKING:
    from sac_rag.serve.asking import Asked
    from sac_rag.serve.tools import AskedWithTools


@dataclass
class Served:
    """What one app holds."""

    libraries: ServedLibraries
    limits: ServeConfig
    keys: Keys | None
    pool: Pool
    metrics: Metrics
    rates: Rates

    def enter(self, headers: Headers, address: str) -> Key:
        """Who asks. ApiError 401 for no key or an unknown one, 429 for too many requests."""
        if self.keys is None:
            self.rates.take(address)
            return EVERYBODY
        secrets = _secrets(headers)
        if not secrets:
            raise ApiError(401, "no_api_key", "no key: send it as `Authorization: Bearer KEY`")
        key = self.keys.holder(secrets.pop()) if len(secrets) == 1 else None
        if key is None:
            self.rates.take(f"?{address}")
            raise ApiError(401, "invalid_api_key", "this key is not known here")
        self.rates.take(key.name)
        return key


def _secrets(headers: Headers) -> set[str]:
    """The keys that a request shows, each once: a proxy in front may have looked at another one than we would."""
    marked = (value.partition(" ") for value in headers.getlist("authorization"))
    bearer = [secret.strip() for scheme, _, secret in marked if scheme.lower() == "bearer"]
    return {secret for secret in (*bearer, *headers.getlist("x-api-key")) if secret}


@dataclass(frozen=True)
class Door:
    """A server, as one request sees it."""

    served: Served
    key: Key
    trace: RequestTrace | None = None
    """What the request is traced by."""

    @classmethod
    def of(cls, request: Request) -> Door:
        """For a request that `Served.enter` has let in."""
        return cls(request.app.state.served, request.scope["sac_key"], RequestTrace.of(request))

    @property
    def libraries(self) -> ServedLibraries:
        return self.served.libraries

    @property
    def limits(self) -> ServeConfig:
        return self.served.limits

    @property
    def pool(self) -> Pool:
        return self.served.pool

    def answer(self, asked: Asked | AskedWithTools, model: str, *, stream: bool) -> Answering:
        """Begin to answer what is asked of `model`. Raises as `Pool.answer` does."""
        if self.trace is not None:
            self.trace.question(asked.served, model, asked.ask, stream=stream, text=asked.question)
        return self.pool.answer(asked.served.name, asked.begin, self.trace)

    def model(self, name: str) -> ServedLibrary:
        """See `ServedLibraries.model`."""
        return self.libraries.model(name, self.key)

    def reading(self, library: str) -> ServedLibrary:
        """A library that may be read."""
        return self.libraries.library(library, self.key)

    def writing(self, library: str) -> ServedLibrary:
        """A library that may be changed."""
        served = self.libraries.library(library, self.key, "write")
        if self.limits.read_only:
            raise ApiError(403, "read_only", "this server takes no changes (--read-only)")
        if not served.is_whole:
            message = f"{library!r} is several libraries, read as one: serve the one that is to change by itself"
            raise ApiError(403, "read_only", message)
        return served
