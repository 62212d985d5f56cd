"""The parts of the torture: what each does, and the counts it must reach. A new one is a module and an entry."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Found:
    """What one piece of a part did, and what it found."""

    counts: Counter[str] = field(default_factory=Counter)
    """By name, among them those that the part's goal names."""
    bad: list[str] = field(default_factory=list)
    """What must not be, one line each."""
    measured: dict[str, float] = field(default_factory=dict)
    """Figures of this piece that are no counts."""

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.bad.append(what)


class CannotRun(Exception):
    """This machine lacks what a part needs; the message says what."""


Piece = Callable[[Path, int, bool], Found]
"""(an empty folder, number of the piece, whether it is to be short) -> what it found. Equal numbers do equal things."""


@dataclass(frozen=True)
class Part:
    """One kind of failure."""

    name: str
    failure: str
    """What goes wrong in the field."""
    way: str
    """How it is brought about, and what must hold."""
    goal: Mapping[str, int]
    """Counts that a whole run reaches."""
    short: bool = True
    """Whether `make test` runs a short piece of it."""

    def piece(self) -> Piece:
        """The function that does one piece, in the module of the part's name."""
        found: Piece = importlib.import_module(f"tests.reliability.{self.name}").piece
        return found


PARTS = {
    part.name: part
    for part in (
        Part(
            "kills",
            "a kill while writing",
            "Whole commands (`sac index --sync`, `add`, `rm`, `gc`, `recode`, `repair`, and an adapter's save), "
            "each killed by strace before one system call that changes a file of the library, over four documents, and "
            "when every call has been met, over four more. Then every memory must be there byte for byte, no commit "
            "that was reported may be lost, and the same command must end where an undisturbed one ends.",
            {"kills": 1000, "commands": 7},
        ),
        Part(
            "power",
            "power loss",
            "Ten histories of commits, removals, gc and repair, recorded call by call with strace. From each moment "
            "all states that a disk may be left in are made: names by any prefix of what was not synced, files by "
            "any prefix, with any one write lost, alone, torn or as zeros. Each must open, hold all that was "
            "acknowledged, and take new commits.",
            {"histories": 10},
        ),
        Part(
            "full_disk",
            "a full disk",
            "`sac index`, `rm`, `gc` and `repair` on a small file system with room for n times 4 KB more, n = 0, 1, "
            "2 … until the command succeeds. It must say that there is no room, the state before must answer, and "
            "with room it must go on.",
            {"commands": 4},
        ),
        Part(
            "mutations",
            "bit rot, truncation, forged files",
            "Files of a library, an adapter, a base model, an embedder and a `sac.toml`, changed at random (bits, "
            "bytes, cuts, zeroed and swapped blocks, huge numbers, values of JSON and TOML). Typed error or right "
            "answer, within 20 seconds and 1 GB; then `repair`, which must give back all that it does not name as "
            "lost.",
            {"mutations": 10_000},
        ),
        Part(
            "snapshots",
            "readers beside writers",
            "Processes that list, load and search in a loop while two writers take turns to change, remove and gc. "
            "All that a reader sees at once must be of one commit, and no commit of a writer may be lost.",
            {"snapshots": 100_000},
        ),
        Part(
            "ids",
            "ids out of step",
            "Random changes against a dictionary, the library opened again between them; catalog, memories and "
            "FAISS must hold the "
            "same ids.",
            {"operations": 10_000},
        ),
        Part(
            "forged",
            "forged tags, special tokens",
            "Prompts with tags that are changed, of other libraries, nested, cut, in look-alike letters, and with "
            "control tokens, as questions, messages and documents. No memory may be loaded for them, and no control "
            "token may come from content.",
            {"prompts": 10_000},
        ),
        Part(
            "tenants",
            "one tenant reads another's passages",
            "Two tenants in one library through LangChain and LlamaIndex: each asks for the other's passages by "
            "search, filter, tag, "
            "content block, id and the text itself.",
            {"requests": 10_000},
        ),
        Part(
            "erasure",
            "what was removed is still on disk",
            "Canaries as text, heading, metadata, name, old version, half-made index, kept damaged catalog and "
            "lexical file; after `rm` and `gc` the bytes of all files of the library and the cache are searched for "
            "them.",
            {"canaries": 8},
        ),
        Part(
            "threads",
            "threads that change each other's answers",
            "Sixteen threads ask at once in bf16; answers and confidences must equal those of one thread, bit for bit.",
            {"answers": 1024},
        ),
        Part(
            "cancelled",
            "streams that are dropped",
            "Streams that are left after their first piece, by drop, by close and by cancelled tasks, while Python "
            "looks for no circles: each must be cancelled at once and make two tokens at the most, no row may stay in "
            "the batch, and threads must go back to where they were.",
            {"streams": 1000},
        ),
        Part(
            "soak",
            "leaks",
            "Questions, changes, gc and reopening without end; after warming up, memory and open files must not grow.",
            {"seconds": 3600},
        ),
        Part(
            "poisoned",
            "poisoned documents",
            "Forty questions over a library in which a document lies about each, or orders the reader to: how often "
            "the lie is answered from memory and from text. A measurement, not a promise; the default model.",
            {"questions": 40},
            short=False,
        ),
    )
}
