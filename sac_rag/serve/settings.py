"""Settings of a server, each with its documentation, which is also the help of `sac serve`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sac_rag.errors import ConfigError

LOCAL = ("127.0.0.1", "localhost", "::1")
"""Hosts that other machines do not reach."""


@dataclass(frozen=True)
class ServeConfig:
    """What a server allows."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond this machine only with --keys, or with --open-to-all."""
    port: int = 8321
    """Port to listen on; 0 takes a free one."""
    open_to_all: bool = False
    """Listen beyond this machine although there are no keys: whoever reaches the port reads and changes everything."""
    read_only: bool = False
    """Take no documents in and remove none, whatever a key may do."""
    body_bytes: int = 32_000_000
    """Largest body of a request, in bytes."""
    requests_per_minute: int = 600
    """Requests of one key (without keys, of one address) in a minute; 0 does not count them."""
    concurrent: int = 64
    """Answers under way and waiting, of all clients; more are refused with 429."""
    connections: int = 400
    """Connections of clients at once; more are closed unheard. Each needs one of the files that a process may open."""
    patience: float = 30.0
    """Seconds in which a client has to say what it wants, and one more for each 16 kB of a body."""
    timeout: float = 300.0
    """Seconds for one answer."""
    max_tokens: int = 1024
    """Longest answer that may be asked for, in tokens."""
    grace: float = 30.0
    """Seconds that answers under way get to end when the server is told to stop."""

    otel: bool = False
    """Send an OpenTelemetry span of each request, and of its steps, to where OTEL_EXPORTER_OTLP_ENDPOINT says."""
    otel_texts: bool = False
    """Put texts of questions, answers and passages into the spans too."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; it must lie in 0..65535")
        for name in ("body_bytes", "concurrent", "connections", "max_tokens"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.requests_per_minute < 0:
            raise ConfigError(f"requests_per_minute is {self.requests_per_minute}; use 0 for no limit, or more")
        for name in ("timeout", "grace"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ConfigError(f"{name} is {value}; give seconds")
        if not 0 < self.patience < math.inf:
            raise ConfigError(f"patience is {self.patience}; give seconds, more than 0")

        if self.otel_texts and not self.otel:
            raise ConfigError("otel_texts is set and otel is not: set both, or neither")

    @property
    def local(self) -> bool:
        """Whether this machine alone can connect."""
        return self.host in LOCAL

    def check_reach(self, *, keys: bool) -> None:
        """Raises ConfigError where anybody of the network would be let in unasked."""
        if not (self.local or keys or self.open_to_all):
            raise ConfigError(
                f"host is {self.host}, which other machines reach, and there are no keys: give --keys FILE, listen on "
                "127.0.0.1, or say --open-to-all"
            )
