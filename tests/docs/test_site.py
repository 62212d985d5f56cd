"""The site of the pages: built strictly, all links within it hold, and nothing is fetched from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT

FETCHED = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
    "link": "href", "object": "data", "embed": "src",
}  # fmt: skip
"""Element -> the attribute that a browser fetches by itself."""


class Page(HTMLParser):
    """What a page fetches, links to, and can be linked to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if (target := found.get(FETCHED.get(tag, ""))) and found.get("rel") != "canonical":
            self.fetched.append(target)
        if tag == "a" and (target := found.get("href")):
            self.links.append(target)
        if name := found.get("id"):
            self.ids.add(name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="the site needs the extra docs: pip install 'sac-rag[docs]'")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_all_links_hold(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) >= 30 and {"index.html", "tutorial.html", "llms.txt"} <= {p.name for p in site.iterdir()}
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].ids if target in pages else set()
            if not target.is_file() or (parts.fragment and target in pages and unquote(parts.fragment) not in anchors):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert not [w for w in wrong if not w.startswith("404.html")], "\n".join(wrong)
    for link in re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text("utf-8")):
        assert (site / link).is_file(), link


@pytest.mark.slow
def test_tables_are_tables(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>", "", path.read_text("utf-8"), flags=re.S)
        assert "| --- |" not in text and not re.search(r"<code>[^<]*\\\|", text), path.relative_to(site)


@pytest.mark.slow
def test_pages_fetch_nothing_from_other_hosts(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.fetched, path
        for target in page.fetched:
            assert not urlsplit(target).netloc, f"{path.relative_to(site)} fetches {target}"
    for sheet in site.rglob("*.css"):
        for target in re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", sheet.read_text("utf-8")):
            assert not re.match(r"(https?:)?//", "".join(target)), f"{sheet.name} fetches {target}"
