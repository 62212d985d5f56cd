"""Fenced code of pages: found, judged, and run in the order in which a reader would."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [ROOT / "README.md", ROOT / "docs/tutorial.md", *sorted((ROOT / "docs/how-to").glob("*.md"))]
"""Pages whose code is run as it stands. That of new-method.md changes the package: test_new_method.py runs it."""
GENERATED = sorted((ROOT / "docs/reference").glob("*.md"))
EVERY = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *GUIDES[2:],
    *GENERATED,
    *sorted((ROOT / "integrations").glob("*/README.md")),
]
LANGUAGES = {"python", "bash", "text", "toml", "json", "diff"}
PORT = "8321"
"""What pages say; tests take a free one."""
ELSEWHERE = re.compile(r"^\s*(make|pip|pipx|uv|git|cd|docker|python3? -m (venv|pip))\b")
"""Lines about getting the software, which is here already."""
_MARK = re.compile(r"<!-- (not run|file): *(.*?) *-->")
_SERVES = re.compile(r"^sac serve\b")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the number of its first line of content, `file` the name under which it is saved."""

    language: str
    text: str
    line: int
    not_run: str | None = None
    file: str | None = None


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text("utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start, language = number, line[3:].strip()
            continue
        before = next((text for text in reversed(lines[:start]) if text.strip()), "")
        mark = _MARK.fullmatch(before.strip())
        kind = {mark[1].replace(" ", "_"): mark[2]} if mark else {}
        found.append(Block(language, "\n".join(lines[start + 1 : number]), start + 2, **kind))
        start = None
    assert start is None, f"{page}: the block at line {(start or 0) + 1} is not closed"
    return found


def to_run(page: Path) -> list[Block]:
    """What is done: files written, shell and Python run."""
    done = [b for b in blocks(page) if b.not_run is None]
    return [b for b in done if b.file or b.language in ("bash", "python")]


def program(page: Path) -> str:
    """The Python of a page as one program; line numbers of a traceback are those of the page."""
    lines: list[str] = []
    for block in to_run(page):
        if block.language == "python" and not block.file:
            lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


def script(page: Path) -> str:
    """The whole page as one shell script: its Python, one program, runs where the first block of it stands.

    Servers go on in the background until the next one, or the end.
    """
    out = ["set -euo pipefail", "server=", "trap '[ -z \"$server\" ] || kill $server' EXIT"]
    ran = False
    for block in to_run(page):
        if block.file:
            out += [f"cat > {shlex.quote(block.file)} <<'END_OF_BLOCK'", block.text, "END_OF_BLOCK"]
        elif block.language == "bash":
            for line in block.text.splitlines():
                if _SERVES.match(line):
                    out += _behind(line)
                elif not ELSEWHERE.match(line):
                    out.append(line)
        elif not ran:
            out.append(f"{shlex.quote(sys.executable)} page.py")
            ran = True
    return "\n".join(out) + "\n"


def _behind(command: str) -> list[str]:
    """A server that is waited for until it says its address."""
    return [
        '[ -z "$server" ] || { kill $server; wait $server || true; }',
        f"{command.partition('  #')[0]} > served.txt &",
        "server=$!",
        "until grep -q ^http served.txt; do kill -0 $server; sleep 0.1; done",
        "cat served.txt",
    ]


def environment() -> dict[str, str]:
    """The user's own, less flags of `sac`; where models lie stays."""
    import sysconfig

    kept = ("SAC_CACHE", "SAC_OFFLINE", "SAC_WHEELHOUSE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SAC_") or k in kept}
    return {**clean, "PATH": os.pathsep.join((sysconfig.get_path("scripts"), clean.get("PATH", "")))}


def slug(heading: str) -> str:
    """The anchor that forges and the site give a heading."""
    return re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings; code is no heading."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}
