"""What an indexing run says of itself, while it runs and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Skip:
    """A file that was not indexed, and why; for a folder, how many files."""

    path: str
    reason: str
    files: int = 1


@dataclass(frozen=True)
class Notice:
    """What was lost or guessed in a file that was indexed."""

    path: str
    text: str


@dataclass
class IndexReport:
    """What an indexing run did, in counts; also its running state for a progress bar."""

    files: int = 0
    """Files found under the given paths."""
    done: int = 0
    """Files dealt with so far."""
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0
    """Passages compressed in this run."""
    tokens: int = 0
    """Source tokens of those."""
    seconds: float = 0.0
    skipped: list[Skip] = field(default_factory=list)
    ignored: list[Skip] = field(default_factory=list)
    """Files and folders that .gitignore files exclude: nothing is known of them, so they count as gone."""
    notices: list[Notice] = field(default_factory=list)
    step: str = ""
    """What is being done: "finding files", "reading", "compressing", "embedding" or "storing"."""
    ahead: float = 0.0
    """Files of the groups under way, by the share of their passages that is compressed."""


Listen = Callable[[IndexReport], None]
