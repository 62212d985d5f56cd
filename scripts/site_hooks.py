"""Hooks of mkdocs: the pages' links hold on the site as they do in the repository.

README.md is the home page. What pages link to outside of docs/ comes along, under repository/. Folders have no page:
links to them become plain words.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOME = ROOT / "README.md"
LLMS = ROOT / "llms.txt"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def place_of(path: Path) -> str:
    """Where a file of the repository stands among the sources of the site."""
    if path == HOME:
        return "index.md"
    inside = path.is_relative_to(DOCS)
    return path.relative_to(DOCS).as_posix() if inside else f"repository/{path.relative_to(ROOT).as_posix()}"


def target_of(page: Path, link: str) -> Path | None:
    """The file of the repository that a page's link means; None for links to the web and within the page."""
    if re.match(r"[a-z]+:|#", link):
        return None
    return Path(os.path.normpath(page.parent / link.partition("#")[0]))


def linked(page: Path) -> set[Path]:
    found = (target_of(page, link) for _, _, link in LINK.findall(page.read_text("utf-8")))
    return {path for path in found if path is not None and path.is_file()}


def on_files(files: Files, config: Any) -> Files:
    known = {DOCS / file.src_uri for file in files}
    left = [HOME, *(path for path in known if path.suffix == ".md")]
    seen = set(left)
    while left:
        page = left.pop()
        for path in linked(page) - seen:
            seen.add(path)
            if path.suffix == ".md":
                left.append(path)
    for path in sorted(seen - known):
        files.append(File.generated(config, place_of(path), abs_src_path=str(path)))

    def address(match: re.Match[str]) -> str:
        file = files.get_file_from_path(place_of(ROOT / match[3]))
        assert file is not None, f"llms.txt: {match[3]} is not on the site"
        return f"[{match[2]}]({file.url})"

    text = LINK.sub(address, LLMS.read_text("utf-8"))
    files.append(File.generated(config, "llms.txt", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are from page to page of the site, and what Python-Markdown reads otherwise than forges do; code
    in fences stays."""
    source = Path(page.file.abs_src_path)
    here = os.path.dirname(page.file.src_uri)

    def on_site(match: re.Match[str]) -> str:
        picture, text, link = match.groups()
        path = target_of(source, link)
        if path is None:
            return match[0]
        if path.is_dir():
            return text
        anchor = link.partition("#")[2]
        return f"{picture}[{text}]({os.path.relpath(place_of(path), here or '.')}{'#' if anchor else ''}{anchor})"

    parts = re.split(r"(^```.*?^```)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else _as_forges(LINK.sub(on_site, part)) for i, part in enumerate(parts))


def _as_forges(text: str) -> str:
    """Bars within code of a table, and Markdown within <details>."""
    text = re.sub(r"`[^`\n]+`", lambda code: code[0].replace("\\|", "|"), text)
    return text.replace("<details>", '<details markdown="1">')
