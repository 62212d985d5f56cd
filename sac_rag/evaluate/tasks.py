"""Questions with their gold context, drawn from MRQA-style files, and the named groups of test files."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sac_rag.errors import ConfigError, TrainingError
from sac_rag.train.data import Question, read_contexts

IN_DOMAIN = (
    "squad.dev.jsonl.gz",
    "nq.test.jsonl.gz",
    "hotpotqa.test.jsonl.gz",
    "fairytaleqa.test.jsonl.gz",
    "timeqa.test.jsonl.gz",
    "squadshifts_amazon.test.jsonl.gz",
    "squadshifts_newwiki.test.jsonl.gz",
    "2wikimultihopqa.test.jsonl.gz",
)
"""Test files whose kind of text and question is trained on (never their questions)."""
OUT_OF_DOMAIN = (
    "covidqa.test.jsonl.gz",
    "pubmedqa.test.jsonl.gz",
    "duorc.test.jsonl.gz",
    "drop_contrast.test.jsonl.gz",
    "narrativeqa_summ.test.jsonl.gz",
    "tatqa.test.jsonl.gz",
    "policyqa.test.jsonl.gz",
    "onestopqa.test.jsonl.gz",
    "triviaqa_wiki.test.jsonl.gz",
    "musique.test.jsonl.gz",
    "quoref_contrast.test.jsonl.gz",
    "ropes_contrast.test.jsonl.gz",
)
"""Test files that no adapter is trained on, nor on others of their kind, but for the two contrast sets: new questions
of kinds that training has."""
MACRO = "macro"
"""Set name of the row that averages over sets; of several groups each has its own, "macro NAME"."""
SETS = {"in-domain": IN_DOMAIN, "out-of-domain": OUT_OF_DOMAIN}

GROUP_CHARACTERS = 100_000
"""Context characters compressed together, at most, unless one context alone is longer."""


@dataclass(frozen=True)
class Task:
    """Some questions of one file, those of a context together."""

    name: str
    contexts: tuple[tuple[str, tuple[Question, ...]], ...]

    @property
    def questions(self) -> int:
        return sum(len(q) for _, q in self.contexts)

    @property
    def in_order(self) -> list[Question]:
        """All questions, by context."""
        return [q for _, questions in self.contexts for q in questions]


def files_of(name: str, folder: str | Path) -> list[str]:
    """Paths of a named group's files; raises ConfigError for an unknown name and for files that are missing."""
    if name not in SETS:
        raise ConfigError(f"unknown group of sets {name!r}; use {' or '.join(SETS)}")
    paths = [Path(folder) / file for file in SETS[name]]
    if missing := [p for p in paths if not p.is_file()]:
        rest = f" (missing too: {', '.join(p.name for p in missing[1:])})" if missing[1:] else ""
        raise ConfigError(f"{missing[0].name} of {name} is not there: {missing[0]}{rest}; name their folder by --data")
    return [str(p) for p in paths]


def set_name(path: str | Path) -> str:
    """What a file's questions are called: its name without endings."""
    return Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]


def grouped(files: Sequence[str] | Mapping[str, Sequence[str]]) -> tuple[list[str], dict[str, slice]]:
    """All files, and which of them each row averages over, by its name: one list of files, or named groups of them."""
    groups = files if isinstance(files, Mapping) else {"": files}
    paths: list[str] = []
    rows = {}
    for name, own in groups.items():
        rows[MACRO if len(groups) == 1 else f"{MACRO} {name}"] = slice(len(paths), len(paths) + len(own))
        paths += own
    return paths, rows


def is_macro(name: str) -> bool:
    """Whether a set's name is that of a row that averages over sets."""
    return name == MACRO or name.startswith(f"{MACRO} ")


def check_names(files: Sequence[str | Path]) -> None:
    """Raises ConfigError when there is no file, or when two rows would have one name."""
    if not files:
        raise ConfigError("no files to score; give at least one")
    names = [set_name(f) for f in files]
    if twice := [n for n in names if names.count(n) > 1 or is_macro(n)]:
        raise ConfigError(f"a second set is called {twice[0]!r}; rename the file, rows are told apart by these names")


def load_task(path: str | Path, *, limit: int | None = None, seed: int = 0, first: int | None = None) -> Task:
    """`limit` questions drawn at random with `seed`, of the `first` contexts; None takes all.

    The draw depends on the file, `limit`, `seed` and `first` alone. Raises TrainingError when the file is missing,
    does not parse or holds no questions.
    """
    contexts = [c for c in read_contexts(path) if c.questions][:first]
    pairs = [(i, j) for i, c in enumerate(contexts) for j in range(len(c.questions))]
    if not pairs:
        raise TrainingError(f"{path} holds no questions; evaluation needs lines with context and qas")
    if limit is not None and limit < len(pairs):
        pairs = sorted(random.Random(seed).sample(pairs, limit))
    chosen: dict[int, list[Question]] = {}
    for i, j in pairs:
        chosen.setdefault(i, []).append(contexts[i].questions[j])
    return Task(set_name(path), tuple((contexts[i].text, tuple(qs)) for i, qs in chosen.items()))


def groups(task: Task, size: int) -> list[list[int]]:
    """Indices of contexts in groups of at most `size` questions, short contexts first (they batch with their likes).

    A context with more questions than `size` is a group of its own.
    """
    found: list[list[int]] = []
    questions = characters = 0
    for i in sorted(range(len(task.contexts)), key=lambda i: len(task.contexts[i][0])):
        text, asked = task.contexts[i]
        questions, characters = questions + len(asked), characters + len(text)
        if not found or questions > size or characters > GROUP_CHARACTERS:
            found.append([])
            questions, characters = len(asked), len(text)
        found[-1].append(i)
    return found
