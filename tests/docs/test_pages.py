"""Pages hold: links lead somewhere, code runs on the default model, trees are those of the repository."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.docs.pages import EVERY, GUIDES, LANGUAGES, PORT, ROOT, anchors, blocks, environment, program, script, to_run
from tests.laws.test_imports import MAY_IMPORT

TRAVEL = """# Travel

Trips are booked by the office. Travel above 500 euros is approved by the finance director, Dana Whitfield.
Receipts are handed in within 30 days.
"""
CANAL = "The Erie Canal opened in 1825. It spans 363 miles between Albany and Buffalo."
RUN_ELSEWHERE = {"new-method.md", "engines.md", "tools.md"}
"""They have tests of their own: they change the package, or take weights of a model."""
ALWAYS_RUN = {"README.md"}
ALL_PAGES = bool(os.environ.get("SAC_TEST_PAGES") or os.environ.get("SAC_TEST_ALL"))
"""Whether the others run, too: all of them take several minutes (`make pages`, `make test-all`)."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def by_name(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=name)


@by_name(EVERY)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


@by_name(GUIDES)
def test_every_block_says_what_it_is_and_what_is_not_run_has_a_reason(page: Path) -> None:
    found = blocks(page)
    assert not {b.language for b in found} - LANGUAGES, f"fence blocks as one of {sorted(LANGUAGES)}"
    assert len(re.findall(r"<!-- not run", page.read_text("utf-8"))) == sum(b.not_run is not None for b in found)
    for block in found:
        assert block.not_run is None or len(block.not_run) >= 15, f"line {block.line}: why is this block not run?"
        if block.language in ("toml", "json"):
            assert block.file or block.not_run, f"line {block.line}: give it a name (<!-- file: NAME -->)"
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "python":
            ast.parse(block.text)


def test_little_is_not_run() -> None:
    """Marks are for what takes hours, an account or another machine."""
    every = [b for page in GUIDES for b in blocks(page) if b.language != "text"]
    assert sum(b.not_run is not None for b in every) <= len(every) / 5


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    commands = [
        line for block in blocks(ROOT / "README.md") if block.language == "bash" for line in block.text.split("\n")
    ]
    assert commands[:2] == ["make demo", "make test"]
    assert "earlier adapter" not in text


def test_the_figure_of_the_readme_is_on_record() -> None:
    """What it says of the default setting stands in the generated page of results."""
    told = (ROOT / "README.md").read_text("utf-8").partition("**At the default setting**")[2].partition("\n\n")[0]
    record = (ROOT / "docs/results.md").read_text("utf-8").partition("## In short")[2].partition("\n## ")[0]
    figures = re.findall(r"[\d.,]+\d (?:s|times sooner|bytes|passages)\b", " ".join(told.split()))
    figures += [f"{five} at k 5" for five in re.findall(r"F1 ([\d.]+\d)", told)]
    assert len(figures) >= 6 and not [figure for figure in figures if figure not in record]


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda p: p.name)
def test_pictures_are_sound_and_fetch_nothing(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.find("{http://www.w3.org/2000/svg}title") is not None
    assert not re.search(r"<script|<image|<foreignObject|@import|url\(|href=", picture.read_text("utf-8"))
    assert any(f"({name(picture).removeprefix('docs/')}" in p.read_text("utf-8").replace("docs/", "") for p in EVERY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "travel.md").write_text(TRAVEL)
    (tmp_path / "docs" / "canal.txt").write_text(CANAL)
    return tmp_path


def run(command: list[str], folder: Path, **own: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(), **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.model
@pytest.mark.slow
@by_name([page for page in GUIDES if page.name not in RUN_ELSEWHERE])
def test_the_code_of_a_page_runs(page: Path, folder: Path) -> None:
    if page.name not in ALWAYS_RUN and not ALL_PAGES:
        pytest.skip("`make pages` runs the code of all pages, `make test` that of the README")
    done = [b for b in to_run(page) if not b.file]
    if not done:
        pytest.skip(f"{page.name} has no code of its own: what it tells of is run by the pages that it names")
    assert shutil.which("sac", path=sysconfig.get_path("scripts")), (
        "sac is not there: install the package (`make install`)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "page.py").write_text(program(page).replace(PORT, port))
    assert run(["bash", "-c", script(page).replace(PORT, port)], folder, SAC_PORT=port).strip()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.skipif(not ALL_PAGES, reason="`make pages` compares the demo with its sample in the README")
def test_the_sample_of_the_demo_is_what_it_prints(tmp_path: Path) -> None:
    """Questions and rows are alike; figures are those of a machine, and of answers all but one."""
    (shown,) = (b.text for b in blocks(ROOT / "README.md") if b.language == "text" and b.text.startswith("Q "))
    printed = run(["sac", "demo"], tmp_path)

    def parts(text: str) -> tuple[list[str], list[str], list[str]]:
        lines = text.strip().splitlines()
        questions = [line for line in lines if line.startswith("Q ")]
        answers = [line for line in lines if line.startswith("A ")]
        rows = [re.split(r"\t|\s{2,}", line)[0] for line in lines[lines.index(answers[-1]) + 2 :] if line.strip()]
        return questions, answers, rows

    one, other = parts(shown), parts(printed)
    assert one[0] == other[0] and {"tokens attended", "right answers"} <= set(one[2]) - {"median"} <= set(other[2])
    assert sum(a == b for a, b in zip(one[1], other[1], strict=True)) >= len(one[1]) - 1


def test_the_file_tree_is_true() -> None:
    """The tree of docs/architecture.md: what it names is there, and no room of sac_rag is left out."""
    (tree,) = (
        b for b in blocks(ROOT / "docs/architecture.md") if b.language == "text" and b.text.startswith("sac_rag/")
    )
    parents: list[str] = []
    named: set[Path] = set()
    for line in tree.text.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        entry, _, comment = line.strip().partition(" ")
        path = ROOT.joinpath(*parents[:depth], entry)
        assert comment.strip(), f"{entry} has no comment"
        assert path.is_dir() if entry.endswith("/") else path.is_file(), f"{path.relative_to(ROOT)} is not there"
        parents[depth:] = [entry]
        named.add(path)
    for folder in ("sac_rag", "sac_rag/compress", "."):
        there = {p for p in (ROOT / folder).iterdir() if tracked(p)}
        assert there <= named, f"not in the tree: {sorted(p.name for p in there - named)}"


def test_every_room_is_told_of() -> None:
    """The table of rooms has a row for each room that tests/laws/test_imports.py knows."""
    table = (ROOT / "docs/architecture.md").read_text("utf-8").partition("## Rooms")[2].partition("## Folders")[0]
    told = set(re.findall(r"\w+", " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))))
    assert set(MAY_IMPORT) <= told
    order = re.search(r"^```text\n(errors.*?)^```", table, re.M | re.S)
    assert order and set(MAY_IMPORT) <= set(re.findall(r"\w+", order[1]))


def tracked(path: Path) -> bool:
    """Folders of the repository, and modules of the package."""
    if path.name.startswith(("_", ".")) or path.name.endswith((".egg-info", ".safetensors", ".typed")):
        return False
    if path.parent == ROOT:
        return path.is_dir() and bool(list(path.rglob("*.md")) + list(path.rglob("*.py"))) and path.name != "build"
    return path.is_dir() or path.suffix == ".py"


def test_the_log_is_indexed() -> None:
    """Every entry stands once under a subject, newest first."""
    text = (ROOT / "docs/log.md").read_text("utf-8")
    index = re.findall(r"^\* \[.*\]\(#(\d{4}-\d\d-\d\d-[^)]*)\)$", text, re.M)
    headings = re.findall(r"^## (\d{4}-\d\d-\d\d: .+)$", text, re.M)
    assert sorted(index) == sorted(anchors(ROOT / "docs/log.md") & set(index)) and len(index) == len(headings)
    assert len(set(index)) == len(index), "an entry stands twice"
    dates = [heading[:10] for heading in headings]
    assert dates == sorted(dates, reverse=True)
    for subject in re.split(r"^\*\*.*\*\*$", text.partition("## By subject")[2].partition("\n## ")[0], flags=re.M)[1:]:
        days = re.findall(r"\(#(\d{4}-\d\d-\d\d)", subject)
        assert days and days == sorted(days, reverse=True)


def test_llms_txt_leads_to_pages() -> None:
    """As llmstxt.org has it: a title, a quote, sections of links with a word on each."""
    lines = (ROOT / "llms.txt").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ") and lines[2].startswith("> ")
    links = [re.fullmatch(r"- \[(.+)\]\((.+)\): (.+)", line) for line in lines if line.startswith("- ")]
    assert len(links) >= 10 and all(links)
    paths = {ROOT / link[2] for link in links if link}
    assert all(path.is_file() for path in paths)
    assert {p for p in GUIDES if p.name != "README.md"} <= paths
