"""docs/reliability.md out of the records."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.parts import PARTS, Part
from tests.reliability.record import Record

HEAD = """# Reliability

Generated from the counts in [reliability/](reliability/) by `make torture` (`python -m tests.reliability`; with
`--report` without running anything); a test keeps the two alike. `--only PART` runs some parts, and a run that was
stopped goes on where it was. `tests/reliability/` holds the parts, of which `make test` runs a short piece each.
All models but that of the poisoned documents are random and tiny: what is tested here does not depend on what a
model has learnt.
"""

BY_TESTS = (
    ("wrong model, adapter, tokenizer, codec", "tests/library/test_library_catalog.py"),
    ("NaN, infinities, overflow", "tests/library/test_library_codecs.py"),
    ("pickle in any file", "tests/library/test_library_corruption.py"),
    ("hostile adapter folders", "tests/security/test_foreign_adapter.py"),
    ("hostile catalogs, names and links", "tests/security/test_foreign_catalog.py"),
    ("forged journals", "tests/security/test_forged_journal.py"),
    ("hostile derived files", "tests/security/test_derived_files.py"),
    ("hostile JSON", "tests/security/test_foreign_json.py"),
    ("control tokens in vocabularies", "tests/security/test_control_tokens.py"),
    ("hostile documents", "tests/text/test_readers.py"),
)
"""Failures that every run of the tests covers whole: (what, where)."""


def render(records: Path) -> str:
    """The whole page."""
    found = {name: Record.read(records, name) for name in PARTS}
    parts = [HEAD, _table(found)]
    parts += [_part(part, found[part.name]) for part in PARTS.values()]
    parts.append("## By tests alone\n\nThese have no count to reach: every run of the tests covers them whole.\n")
    parts.append("\n".join(f"* {what}: `{path}`" for what, path in BY_TESTS) + "\n")
    return "\n".join(parts)


def _table(found: dict[str, Record]) -> str:
    lines = ["| failure | reached | of | bad |", "| --- | ---: | ---: | ---: |"]
    for name, part in PARTS.items():
        record = found[name]
        for count, goal in part.goal.items():
            reached = record.counts.get(count, 0)
            bad = str(record.bad) if record.pieces else "not run"
            mark = "" if reached >= goal else " (not reached)"
            lines.append(f"| {part.failure} | {reached:,} {count}{mark} | {goal:,} | {bad} |")
    return "\n".join(lines) + "\n"


def _part(part: Part, record: Record) -> str:
    lines = [f"## {part.failure[0].upper()}{part.failure[1:]}\n", part.way + "\n"]
    if not record.pieces:
        return "\n".join([*lines, f"Not run yet: `python -m tests.reliability --only {part.name}`.\n"])
    counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in sorted(record.counts.items()))
    lines.append(f"Counted: {counts}; **{record.bad} bad**.\n")
    if record.measured:
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in sorted(record.measured.items()))
        lines.append(f"Measured: {figures}.\n")
    lines += [f"* {line}" for line in record.lines[:10]] + [""] * bool(record.lines)
    took = f"{record.seconds / 60:.0f} minutes" if record.seconds >= 120 else f"{record.seconds:.0f} seconds"
    lines.append(f"On {record.date}, {record.cpu}, {took}: `python -m tests.reliability --only {part.name}`.\n")
    return "\n".join(lines)
