"""How often a client may ask."""

from __future__ import annotations

import time
from collections import OrderedDict

from sac_rag.serve.errors import ApiError


class Rates:
    """Requests by name, each with so many a minute: a bucket that fills steadily."""

    MOST = 10_000
    """Names that are remembered; the longest unseen go first."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now: float | None = None) -> None:
        """Count a request. ApiError 429, which says when to come again."""
        if not self.per_minute:
            return
        now = time.monotonic() if now is None else now
        left, since = self._left.pop(name, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * self.per_minute / 60)
        while len(self._left) >= self.MOST:
            self._left.popitem(last=False)
        if left < 1:
            self._left[name] = left, now
            wait = max(1, round((1 - left) * 60 / self.per_minute))
            message = f"more than {self.per_minute} requests a minute; come again in {wait} s"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after=wait)
        self._left[name] = left - 1, now
