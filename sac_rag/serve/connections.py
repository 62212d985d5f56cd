"""Connections of clients: how many there may be, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sac_rag.serve.settings import ServeConfig

SLOWEST = 16_384
"""Bytes a second of a body that are waited for, however long it is."""


def protocol(limits: ServeConfig) -> type[H11Protocol]:
    """What uvicorn speaks with each client of a server of these limits."""
    return type("Limited", (_Connection,), {"most": limits.connections, "patience": limits.patience})


class _Connection(H11Protocol):
    """HTTP/1.1 alone. A client that says nothing, or says it by the byte, holds a connection for a while and no more.

    The clock runs whenever it is the client's turn to speak, from the connection, or the answer before, on.
    """

    most: int
    patience: float
    _clock: asyncio.TimerHandle | None = None
    _since = 0.0
    _heard = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
            return
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        self._stop()
        super().on_response_complete()
        self._look()

    def _should_upgrade(self) -> bool:
        """There are no WebSockets here: who asks for one is answered as if it had not."""
        return False

    def _look(self) -> None:
        """Start the clock, or stop it, by whose turn it is."""
        waits = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
        if not waits:
            self._stop()
        elif self._clock is None:
            self._since, self._heard = self.loop.time(), 0
            self._clock = self.loop.call_later(self.patience, self._due)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _due(self) -> None:
        """Hang up, unless so much was said meanwhile that it earns more time."""
        left = self._since + self.patience + self._heard / SLOWEST - self.loop.time()
        if left > 0 and self.conn.their_state is h11.SEND_BODY:
            self._clock = self.loop.call_later(left, self._due)
            return
        self._clock = None
        self.transport.abort()
