"""Parts of a file that are read one by one, as lines or messages are: a bad one costs only itself, and is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from sac_rag.text.cleaning import Refused
from sac_rag.text.extract import Extract, TooLong

_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What readers of parts raise that nobody vouches for."""


class Parts:
    """Reads parts into `out`; `what` they are: "lines". `reason`: of parts that fail without one. `at`: what their
    numbers count, where that is something else."""

    def __init__(self, out: Extract, what: str, reason: str = "malformed", at: str = "") -> None:
        self.out, self.what, self.reason, self.at = out, what, reason, at
        self.total = 0
        self._bad: dict[str, list[int]] = {}

    @contextmanager
    def one(self, number: int | None = None) -> Iterator[None]:
        """Read the next part, by its count unless it has a number. What a bad one has written is taken back."""
        self.total += 1
        before = self.out.mark()
        try:
            yield
        except TooLong:
            raise
        except (Refused, *_MALFORMED) as error:
            self.out.back_to(before)
            reason = str(error) if isinstance(error, Refused) else self.reason
            self._bad.setdefault(reason, []).append(self.total if number is None else number)

    def tell(self) -> None:
        """Add a notice for each reason; raises Refused where no part is sound."""
        if self._bad and sum(map(len, self._bad.values())) == self.total:
            reason, numbers = next(iter(self._bad.items()))
            if self.total == 1:
                raise Refused(reason)
            raise Refused(numbered(numbers, self.total, f"{self.what} left out, {reason}", self.at))
        for reason, numbers in self._bad.items():
            self.out.notices.append(numbered(numbers, self.total, f"{self.what} left out, {reason}", self.at))


def numbered(numbers: Sequence[int], total: int, what: str, at: str = "") -> str:
    """ "2 of 9 pages could not be read: 3, 7"; with `at` "line", "…: line 3, 7"."""
    shown = f"{at} {', '.join(_ranges(numbers[:1000]))}".lstrip()
    return f"{len(numbers)} of {total} {what}: {shown[:200]}"


def _ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Ascending numbers, neighbours as "3-7"."""
    first = last = -1
    for number in (*numbers, -1):
        if number != last + 1 or number == -1:
            if first >= 0:
                yield f"{first}-{last}" if last > first else str(first)
            first = number
        last = number
