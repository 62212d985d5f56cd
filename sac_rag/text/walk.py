"""Folders, files and patterns to file paths: sorted, .gitignore respected, symbolic links kept inside."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from sac_rag.foreign import read_start
from sac_rag.text.formats import format_of
from sac_rag.text.ignore import MOST_BYTES, MOST_RULES, Rules
from sac_rag.text.ignore import pattern as pattern_rule

OnSkip = Callable[[str, str], None]
"""Called with (path, reason) for everything that is not indexed; a folder that cannot be opened ends in a slash. The
reason is one short lower-case phrase."""

OnIgnored = Callable[[str, int], None]
"""Called with (path, number of files of known formats) for a file or folder that .gitignore files exclude."""

MOST_COUNTED = 50_000
"""Entries of an excluded folder that are looked at to count its files."""

_MAGIC = re.compile(r"[*?\[]")


def walk(
    paths: Iterable[str | Path], *, on_skip: OnSkip, on_ignored: OnIgnored = lambda path, files: None
) -> Iterator[Path]:
    """Each file once, folders in sorted order; what cannot be followed goes to `on_skip`, never raised.

    Inside folders and patterns, hidden entries are left out without a word, and what .gitignore files exclude (nested
    ones and those above, up to the repository's root) goes to `on_ignored` if it would be read. Linked files are read
    if they lie in the same folder tree; linked folders are reported, not entered. A path given by name is taken as it
    is.
    """
    seen: set[str] = set()
    for given in paths:
        for path in _expand(os.fspath(given), on_skip, on_ignored):
            name = str(path)
            if not _encodable(name):
                on_skip(name.encode("utf-8", "backslashreplace").decode(), "name is not valid unicode")
            elif (key := os.path.abspath(path)) not in seen:
                seen.add(key)
                yield path


def os_reason(error: OSError) -> str:
    """The phrase for skip reports."""
    match error.errno:
        case errno.ELOOP:
            return "symlink loop"
        case errno.ENOENT | errno.ENOTDIR:
            return "not found"
        case errno.EACCES | errno.EPERM:
            return "permission denied"
        case errno.EISDIR:
            return "is a folder"
        case errno.ENAMETOOLONG:
            return "name too long"
    return f"unreadable ({os.strerror(error.errno).lower()})" if error.errno else "unreadable"


def _expand(given: str, on_skip: OnSkip, on_ignored: OnIgnored) -> Iterator[Path]:
    path = Path(given)
    try:
        if path.is_dir():
            yield from _folder(path, None, on_skip, on_ignored)
        elif _MAGIC.search(given) and not os.path.lexists(path):
            yield from _pattern(path, on_skip, on_ignored)
        else:
            os.stat(path)
            yield path
    except OSError as error:
        broken = error.errno == errno.ENOENT and path.is_symlink()
        on_skip(given, "broken symlink" if broken else os_reason(error))
    except ValueError:  # a NUL in the name
        on_skip(given.replace("\0", "\\0"), "not found")


def _pattern(pattern: Path, on_skip: OnSkip, on_ignored: OnIgnored) -> Iterator[Path]:
    """Matches of a pattern: `*` and `?` stay within a name, `**` crosses folders, a matched folder counts whole."""
    parts = pattern.parts
    fixed = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:fixed]) if fixed else Path(".")
    found = False

    def skip(path: str, reason: str) -> None:
        nonlocal found
        found = True
        on_skip(path, reason)

    if root.is_dir():
        for path in _folder(root, parts[fixed:], skip, on_ignored):
            found = True
            yield path
    if not found:
        on_skip(str(pattern), "no file matches")


def _folder(root: Path, pattern: tuple[str, ...] | None, on_skip: OnSkip, on_ignored: OnIgnored) -> Iterator[Path]:
    real_root = os.path.realpath(root)
    base = Path(real_root)  # rules hold for where a folder is, not for the link it is reached by
    wanted = _wanted(pattern) if pattern else None
    todo: list[tuple[Path, _Rules]] = [(root, _rules_above(base))]  # a stack: folders nest deeper than Python recurses
    while todo:
        path, rules = todo.pop()
        if path != root and not _is_folder(path):
            if wanted is None or wanted(path.relative_to(root).parts):
                if reason := _link_reason(path, real_root):
                    on_skip(str(path), reason)
                else:
                    yield path
            continue
        if pattern and path != root and not _leads_to(path.relative_to(root).parts, pattern):
            continue
        try:
            with os.scandir(path) as entries:
                names = [(e.name, _is_real_folder(e)) for e in entries if not e.name.startswith(".")]
        except OSError as error:
            on_skip(os.path.join(path, ""), os_reason(error))
            continue
        here = base / path.relative_to(root)
        rules = _with_rules_of(here, rules)
        for name, is_folder in sorted(names, reverse=True):
            if not _ignored(here / name, is_folder, rules):
                todo.append((path / name, rules))
                continue
            is_wanted = wanted is None or (not is_folder and wanted((path / name).relative_to(root).parts))
            if is_wanted and (files := _readable(path / name, is_folder)):
                on_ignored(str(path / name) + os.sep * is_folder, files)


def _readable(path: Path, is_folder: bool) -> int:
    """How many files would be read if they were not excluded."""
    if not is_folder:
        return int(format_of(path) is not None)
    count = seen = 0
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(not name.startswith(".") and format_of(Path(name)) is not None for name in files)
        seen += len(files) + len(folders)
        if seen > MOST_COUNTED:
            break
    return count


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir() and not path.is_symlink()
    except OSError:
        return False


def _is_real_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _link_reason(path: Path, real_root: str) -> str | None:
    """Why a symbolic link is not followed; None for plain files and for links to files of the same tree."""
    try:
        if not path.is_symlink():
            return None
        target = os.path.realpath(path, strict=True)
    except OSError as error:
        return "broken symlink" if error.errno == errno.ENOENT else os_reason(error)
    if os.path.isdir(target):
        here = os.path.realpath(path.parent)
        return "symlink loop" if _inside(here, target) else "symlink to a folder"
    if not _inside(target, real_root):
        return "symlink leaves the folder"
    return "symlink to a hidden or ignored file" if _left_out(Path(target), Path(real_root)) else None


def _left_out(target: Path, root: Path) -> bool:
    """Whether a walk of `root` passes a file over, by its own name or that of a folder around it."""
    rules, at = _rules_above(root), root
    for part in target.relative_to(root).parts:
        rules = _with_rules_of(at, rules)
        at = at / part
        if part.startswith(".") or _ignored(at, at != target, rules):
            return True
    return False


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _leads_to(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something below the folder `parts` can match: spares walking the rest of the disk."""
    for part, wanted in zip(parts, pattern, strict=False):
        if "**" in wanted:
            return True
        if not fnmatchcase(part, wanted):
            return False
    return True


_Rules = tuple[tuple[Path, Rules], ...]
"""(folder, what its .gitignore file says), innermost first."""


def _ignored(path: Path, is_folder: bool, rules: _Rules) -> bool:
    """The innermost file that has a rule for `path` decides."""
    for folder, own in rules:
        left_out = own.decide(path.relative_to(folder).parts, is_folder)
        if left_out is not None:
            return left_out
    return False


def _rules_above(root: Path) -> _Rules:
    """Rules between `root` and the root of its repository, except files that exclude `root`: it was asked for."""
    absolute = Path(os.path.abspath(root))
    repository = next((folder for folder in (absolute, *absolute.parents) if (folder / ".git").exists()), absolute)
    found: _Rules = ()
    for folder in absolute.parents:
        if not folder.is_relative_to(repository):
            break
        grown = _with_rules_of(folder, found)
        if not _ignored(absolute, True, grown[: len(grown) - len(found)]):
            found = (*found, *grown[: len(grown) - len(found)])
    return found


def _with_rules_of(folder: Path, rules: _Rules) -> _Rules:
    """`rules`, and before them those of a folder's .gitignore, in all no more than MOST_RULES."""
    path = folder / ".gitignore"
    try:
        lines = read_start(path, MOST_BYTES).decode("utf-8-sig", "replace").split("\n")
    except (OSError, ValueError):  # there is none, or it is a pipe
        return rules
    own = Rules(lines, MOST_RULES - sum(len(outer) for _, outer in rules))
    return ((folder, own), *rules) if len(own) else rules


def _wanted(names: tuple[str, ...]) -> Callable[[tuple[str, ...]], bool]:
    """Whether a path, name by name, or a folder that it lies in, fits a pattern."""
    try:
        rule = pattern_rule(names)
    except ValueError:
        return lambda parts: False
    return lambda parts: any(rule.fits(parts[: n + 1]) for n in range(len(parts)))


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
