"""The page in a real browser: asking, sources, documents; by keyboard, on a phone, in the dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sac_rag.answer.confidence import Thresholds
from tests.serve.conftest import SECRETS, Live

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SHOTS = os.environ.get("SAC_SCREENSHOTS")
"""A folder: screenshots of the tests are kept there."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"] if found else [])
        except playwright.Error as error:
            pytest.skip(f"no Chromium here (playwright install chromium): {str(error).splitlines()[0]}")
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith("http://127.0.0.1:") else None)
    yield page
    context.close()
    assert not [c for c in complaints if "401" not in c and "422" not in c], complaints


def answered(page: Any, live: Live, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    page.wait_for_selector("article dl dd")


def test_a_question_is_answered_with_its_sources(page: Any, live: Live) -> None:
    want = live.rag.ask("How long is the Erie Canal?", k=2, max_new_tokens=9)
    text = live.rag.ask("How long is the Erie Canal?", k=2, max_new_tokens=9, text=True)
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    assert page.locator("#documents td:first-child").all_inner_texts() == ["bridge.md", "canal.md", "tides.md"]
    page.get_by_role("slider", name="Passages").fill("2")
    page.get_by_role("spinbutton", name="Tokens").fill("9")
    page.get_by_label("the passages as text").check()
    answered(page, live, "How long is the Erie Canal?")
    page.wait_for_selector("article:nth-of-type(2) dl dd")
    memory, other = page.locator("article").all()
    assert memory.locator(".answer").text_content() == want.text
    assert other.locator(".answer").text_content() == text.text
    sources = memory.locator(".sources summary").all_inner_texts()
    assert [s.partition(",")[0] for s in sources] == [h.passage.document for h in want.sources]
    assert f"{want.usage.attended}, for {want.usage.source_tokens}" in memory.locator("dl").inner_text()
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / "page.png", full_page=True)


def test_the_span_that_says_it_is_marked(page: Any, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sac_rag.answer.spans.answering_span", lambda answer, passage: (2, 6))
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    answered(page, live, "When do the tides come?")
    passages = [h.passage.text for h in live.rag.retrieve("When do the tides come?")]
    assert page.locator(".sources mark").all_inner_texts() == [p[2:6] for p in passages]
    assert [p.text_content() for p in page.locator(".sources p").all()] == passages


def test_anchors_that_were_attended_are_shown_where_that_is_asked_for(page: Any, live: Live) -> None:
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    answered(page, live, "When do the tides come?")
    assert page.locator(".anchor").count() == 0
    page.get_by_label("show which anchors were attended").check()
    page.get_by_role("spinbutton", name="Tokens").fill("9")
    answered(page, live, "When do the tides come?")
    page.wait_for_selector(".anchor")
    want = live.rag.ask("When do the tides come?", max_new_tokens=9, heat=True)
    assert want.heat is not None
    hottest = max(share for anchors in want.heat.anchors for *_, share in anchors)
    for hit, anchors, shown in zip(want.sources, want.heat.anchors, page.locator(".sources p").all(), strict=True):
        assert shown.text_content() == hit.passage.text
        spans = shown.locator(".anchor")
        assert spans.all_text_contents() == [hit.passage.text[a:b] for a, b, _ in anchors]
        heats = spans.evaluate_all("all => all.map(e => Number(e.style.getPropertyValue('--heat')))")
        assert heats == pytest.approx([share / hottest for *_, share in anchors], abs=2e-3)
    assert f"{100 * want.heat.passages:.1f} %" in page.locator("dl").inner_text()
    assert page.locator(".of-heat").inner_text().endswith(f"{100 * hottest:.2f} %"), "the legend ends at the hottest"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_legend_shows_the_colours_that_the_text_has(page: Any, live: Live, scheme: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sac_rag.answer.spans.answering_span", lambda answer, passage: (2, 6))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    answered(page, live, "When do the tides come?")
    assert page.locator(".of-marks").is_visible() and not page.locator(".of-heat").is_visible()
    page.get_by_label("show which anchors were attended").check()
    answered(page, live, "When do the tides come?")
    page.wait_for_selector(".anchor")
    scale, article = page.locator(".scale").bounding_box(), page.locator("article").bounding_box()
    assert scale["width"] > 40 and scale["x"] + scale["width"] < article["x"] + article["width"]
    hottest = page.locator(".anchor").evaluate_all(
        "all => getComputedStyle(all.find(e => e.style.getPropertyValue('--heat') === '1.000')).backgroundColor"
    )
    ends = page.locator(".scale").evaluate("e => getComputedStyle(e).backgroundImage")
    colours = "(of) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = of;"
    colours += " c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data] }"
    last = ends[ends.rindex("rgb") : -1]
    assert page.evaluate(colours, last) == page.evaluate(colours, hottest)
    assert page.locator(".legend mark").evaluate("e => getComputedStyle(e).backgroundColor") == page.locator(
        ".sources mark"
    ).first.evaluate("e => getComputedStyle(e).backgroundColor")
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"legend-{scheme}.png", full_page=True)


def test_a_doubtful_answer_is_called_so(page: Any, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = live.rag.ask("When do the tides come?", max_new_tokens=9).confidence
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    page.get_by_role("spinbutton", name="Tokens").fill("9")
    for limit, shown in ((-1e6, f"{confidence:.2f}"), (0.0, f"{confidence:.2f}, doubtful")):
        thresholds = Thresholds({"memory": None, "text": None}, None, {"memory": limit, "text": None})
        monkeypatch.setattr(Thresholds, "known", lambda folder, ratio, found=thresholds: found)
        answered(page, live, "When do the tides come?")
        assert shown in page.locator("dl").inner_text().splitlines()


def test_documents_are_added_and_removed(page: Any, live: Live, tmp_path: Path) -> None:
    (tmp_path / "gulls.md").write_text("# Gulls\n\nGulls nest on the pier.")
    (tmp_path / "<img src=x onerror=alert(1)>.txt").write_text("A name that is no markup.")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    page.get_by_label("Add files").set_input_files([tmp_path / "gulls.md", tmp_path / "broken.pdf"])
    page.wait_for_selector("#documents tr:nth-child(4)")
    lines = page.locator("#progress li").all_inner_texts()
    assert lines[0].startswith("gulls.md: added, 1 passages") and "broken.pdf" in lines[1]
    assert page.locator("#progress li.bad").count() == 1
    page.get_by_label("Add files").set_input_files([tmp_path / "<img src=x onerror=alert(1)>.txt"])
    page.wait_for_selector("#documents tr:nth-child(5)")
    assert page.locator("img").count() == 0
    page.get_by_label("Find by name").fill("gul")
    assert page.locator("#documents tr:visible").count() == 1
    page.get_by_role("button", name="Remove gulls.md").click()
    assert len(live.rag.newest().documents()) == 5
    page.get_by_role("button", name="Really remove? gulls.md").click()
    playwright.expect(page.locator("#documents tr")).to_have_count(4, timeout=60_000)
    assert "gulls.md" not in {d.uri for d in live.rag.newest().documents()}


def test_the_keyboard_is_enough(page: Any, live: Live) -> None:
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the question"
    page.keyboard.press("Enter")
    page.keyboard.type("How long is the canal?")
    page.keyboard.press("Enter")
    page.wait_for_selector("article dl dd")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "k", "tokens", "fidelity", "as-text", "files", "filter", "SUMMARY", "BUTTON"} <= reached
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input,select,textarea')].filter(e => !e.labels.length).map(e => e.id)"
    )
    assert unnamed == []


def test_stopping_frees_the_row(page: Any, live: Live) -> None:
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    page.get_by_role("spinbutton", name="Tokens").fill("1000")
    page.get_by_label("Question").fill("How long is the canal?")
    page.get_by_label("Question").press("Enter")
    page.wait_for_selector(".answer.busy")
    page.keyboard.press("Escape")
    page.wait_for_selector(".notices li")
    assert page.locator(".notices li").inner_text() == "stopped"
    page.wait_for_timeout(100)
    while any(live.rag.load):
        page.wait_for_timeout(20)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_the_dark(browser: Any, live: Live, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(live.url)
    page.wait_for_selector("#documents tr")
    answered(page, live, "How long is the Erie Canal?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, ground = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(page, ink, ground) >= 7
    assert (luminance(page, ground) < 0.1) == (scheme == "dark")
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"phone-{scheme}.png")
    context.close()


def luminance(page: Any, colour: str) -> float:
    """Relative luminance as of WCAG 2."""
    draw = (
        "c => { const x = document.createElement('canvas').getContext('2d'); x.fillStyle = c; x.fillRect(0, 0, 1, 1);"
    )
    parts = page.evaluate(f"{draw} return [...x.getImageData(0, 0, 1, 1).data]; }}", colour)[:3]
    linear = [(v / 255) / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(page: Any, a: str, b: str) -> float:
    light, dark = sorted((luminance(page, a), luminance(page, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_key_is_asked_for(page: Any, guarded: Live) -> None:
    page.goto(guarded.url)
    page.get_by_label("Key").fill(SECRETS["sea"])
    page.get_by_role("button", name="Enter").click()
    page.wait_for_selector("#documents tr")
    assert page.locator("#documents td:first-child").all_inner_texts() == ["tides.md"]
    assert page.locator("#key-form").is_hidden()


def test_nothing_is_loaded_from_elsewhere(live: Live) -> None:
    import re

    with live.client() as client:
        reply = client.get("/")
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        files = [reply.text, *(client.get(f"/static/{n}").text for n in ("page.js", "page.css", "icon.svg"))]
    found = [url for text in files for url in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)]
    assert found == ["http://www.w3.org"]  # the name of SVG's namespace
