"""The rules of .gitignore files, matched in bounded time whatever they say: a cloned folder brings its own.

Each name of a rule becomes a regular expression without backtracking over its stars: what stands between two stars is
taken where it first fits, which is right for wildcards, and never tried elsewhere. `**` is matched in the same way over
the folders of a path. A match so takes at most length of rule times length of path; the number of rules is limited.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_RULES = 10_000
"""Rules that count for one file, those of the innermost .gitignore first."""
MOST_BYTES = 1 << 20
"""How much of a .gitignore file is read."""

_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": "\\s",
    "xdigit": "0-9A-Fa-f",
    "punct": "!-/:-@\\[-`{-~",
}
_ANY = "**"
_LONGEST = 4096
"""Longest rule that counts: paths are no longer."""
_Part = re.Pattern[str] | None
"""One name of a rule; None stands for `**`, any number of folders."""


@dataclass(frozen=True)
class Rule:
    """One line of a .gitignore file."""

    parts: tuple[_Part, ...]
    include: bool
    """Whether what it fits is left out; a rule with `!` takes it in again."""
    folders_only: bool

    def fits(self, path: Sequence[str]) -> bool:
        """Whether it fits a path, relative to the rule's folder, name by name."""
        rule, at, star, back = 0, 0, -1, 0
        parts = self.parts
        while at < len(path):
            if rule < len(parts) and parts[rule] is None:
                if rule == len(parts) - 1:
                    return True  # what is left of the path is inside
                star, back = rule, at
                rule += 1
            elif rule < len(parts) and (part := parts[rule]) is not None and part.match(path[at]):
                rule, at = rule + 1, at + 1
            elif star >= 0:  # the last `**` takes one folder more
                back += 1
                rule, at = star + 1, back
            else:
                return False
        return rule == len(parts)


class Rules:
    """The rules of one file, in its order."""

    def __init__(self, lines: Iterable[str], most: int = MOST_RULES) -> None:
        found = (rule for line in lines if (rule := _rule(line)) is not None)
        self.rules = [rule for rule, _ in zip(found, range(most), strict=False)][::-1]

    def __len__(self) -> int:
        return len(self.rules)

    def decide(self, path: Sequence[str], is_folder: bool) -> bool | None:
        """Whether a path, name by name from the file's folder on, is left out; None if no rule fits. The last does."""
        for rule in self.rules:
            if (is_folder or not rule.folders_only) and rule.fits(path):
                return rule.include
        return None


def pattern(names: Sequence[str]) -> Rule:
    """Names of a path, with wildcards and `**`, as a rule. Raises ValueError for what fits nothing."""
    once = [name for name, before in zip(names, ["", *names], strict=False) if (name, before) != (_ANY, _ANY)]
    return Rule(tuple(None if name == _ANY else _name(name) for name in once), include=True, folders_only=False)


def _rule(line: str) -> Rule | None:
    """None for a comment, an empty line, and what fits nothing."""
    if len(line) > _LONGEST:
        return None
    line = line.rstrip("\r\n")
    while line.endswith(" ") and not line.endswith("\\ "):
        line = line[:-1]
    if not line or line.startswith("#"):
        return None
    include = not line.startswith("!")
    line = line if include else line[1:]
    folders_only = line.endswith("/")
    body = line.rstrip("/") if folders_only else line
    names = [name if len(name) < 2 or name.strip("*") else _ANY for name in body.split("/") if name]
    if not names:
        return None
    if "/" not in body and names != [_ANY]:  # a name fits in any folder
        names = [_ANY, *names]
    try:
        return Rule(pattern(names).parts, include, folders_only)
    except ValueError:
        return None


@functools.lru_cache(maxsize=50_000)
def _name(glob: str) -> re.Pattern[str]:
    """The regular expression of one name. Raises ValueError for what fits nothing."""
    chunks, at = [""], 0
    while at < len(glob):
        char, at = glob[at], at + 1
        if char == "*":
            if chunks[-1] or len(chunks) == 1:  # several stars are one
                chunks.append("")
            continue
        if char == "[":
            char, at = _set(glob, at)
        elif char == "?":
            char = "."
        elif char == "\\":
            if at == len(glob):
                raise ValueError(f"{glob!r} ends in the middle of an escape")
            char, at = re.escape(glob[at]), at + 1
        else:
            char = re.escape(char)
        chunks[-1] += char
    first, *rest = chunks
    stars = "".join(f"(?>.*?{chunk})" for chunk in rest[:-1]) + f".*{rest[-1]}" if rest else ""
    try:
        return re.compile(f"(?s:{first}{stars})\\Z")
    except re.error as error:  # a range from z to a
        raise ValueError(f"{glob!r} is no pattern: {error}") from None


def _set(glob: str, at: int) -> tuple[str, int]:
    """(a set such as [a-z] as a regular expression, where it ends), from behind its bracket. Raises ValueError."""
    negated, inside = glob[at : at + 1] in ("!", "^"), ""
    start = at = at + negated
    while at < len(glob) and (glob[at] != "]" or at == start):
        end = glob.find(":]", at) if glob.startswith("[:", at) else -1
        if end > 0:
            if (name := glob[at + 2 : end]) not in _CLASSES:
                raise ValueError(f"{glob!r} names a class {name!r} that there is not")
            inside, at = inside + _CLASSES[name], end + 2
            continue
        if glob[at] == "\\" and at + 1 < len(glob):
            at += 1
            inside += re.escape(glob[at])
        else:
            inside += "-" if glob[at] == "-" else re.escape(glob[at])
        at += 1
    if at >= len(glob):
        raise ValueError(f"{glob!r} has a bracket without end")
    return f"[{'^' * negated}{inside}]", at + 1
