"""Text of a PDF that a reader of the page does not see: left out and told. What is seen stays."""

from __future__ import annotations

import pytest

from sac_rag.config import ReadConfig
from sac_rag.text.pdf import pdf
from tests.text.made import painted_pdf

TOLD = ["1 of 1 pages hold text that is not seen and not read: 1"]
LAYERS = {
    "resources": "/Properties << /A 100 0 R /B 101 0 R /M 102 0 R >> /XObject << /F 103 0 R /G 104 0 R /I 105 0 R >>"
    " /ExtGState << /T << /ca 0 >> >>",
    "catalog": "/OCProperties << /OCGs [100 0 R 101 0 R] /D << /OFF [100 0 R] >> >>",
    "extras": (
        "<< /Type /OCG /Name (Off) >>",
        "<< /Type /OCG /Name (On) >>",
        "<< /Type /OCMD /OCGs [100 0 R] >>",
        *(
            f"<< /Type /XObject /Subtype /Form /BBox [0 0 595 842] /OC {layer} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> /Length 44 >>\nstream\n"
            "BT /F1 12 Tf 72 500 Td (ignore all of it) Tj ET\nendstream"
            for layer in (100, 101)
        ),
        "<< /Type /XObject /Subtype /Image /Width 2 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 2 >>"
        "\nstream\n\x00~\nendstream",
    ),
}
SEEN = "BT /F1 12 Tf 72 700 Td (Rent is due.) Tj ET"
SCAN = "q 595 0 0 842 0 0 cm /I Do Q "


def at(text: str, x: int = 72, y: int = 500, size: int = 12, more: str = "") -> str:
    return f"BT /F1 {size} Tf {more} {x} {y} Td ({text}) Tj ET "


def read(content: str) -> tuple[str, list[str]]:
    parsed = pdf(painted_pdf(content, **LAYERS), ReadConfig())  # type: ignore[arg-type]
    return parsed.text, parsed.meta.get("notices", [])


@pytest.mark.parametrize(
    "content",
    [
        f"q 1 1 1 rg {at('ignore')} Q",
        f"q 0.99 0.98 1 rg {at('ignore')} Q",
        f"q 1 g {at('ignore')} Q",
        f"q 0.9 g 50 450 400 100 re f 0.9 g {at('ignore')} Q",
        f"q /T gs {at('ignore')} Q",
        at("ignore", more="3 Tr"),
        at("ignore", more="7 Tr"),
        f"/OC /A BDC {at('ignore')} EMC",
        f"/OC /M BDC {at('ignore')} EMC",
        f"/OC /A BDC /Span << /MCID 0 >> BDC {at('ignore')} EMC EMC",
        "/F Do",
        at("ignore", x=700),
        at("ignore", y=-50),
        at("ignore", x=-400),
    ],
)
def test_what_is_not_seen_is_left_out_and_told(content: str) -> None:
    assert read(f"{SEEN}\n{content}") == ("Rent is due.", TOLD)
    assert read(f"q {content} Q\n{SEEN}") == ("Rent is due.", TOLD)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (f"q 0 g 50 450 400 100 re f 1 g {at('white on black')} Q", "white on black"),
        (f"q 0.2 0.3 0.6 rg 50 450 400 100 re f 1 1 1 rg {at('white on blue')} Q", "white on blue"),
        (f"q 0.8 g {at('light grey')} Q", "light grey"),
        (f"q 1 1 0 rg {at('yellow')} Q", "yellow"),
        (f"q 1 g 0 G {at('outlined', more='2 Tr')} Q", "outlined"),
        (f"/OC /B BDC {at('layer that is on')} EMC", "layer that is on"),
        ("/G Do", "ignore all of it"),
        (f"{SCAN}{at('recognised', more='3 Tr')}", "recognised"),
        (at("at the edge", x=2, y=2), "at the edge"),
        (at("top", y=830), "top"),
    ],
)
def test_what_is_seen_is_read(content: str, text: str) -> None:
    assert read(content) == (text, [])


def test_hidden_words_go_out_of_the_middle_of_a_line() -> None:
    content = "BT /F1 12 Tf 72 700 Td (Rent is due ) Tj 1 g (never ) Tj 0 g (in May.) Tj ET"
    text, notices = read(content)
    assert (text.split(), notices) == ("Rent is due in May.".split(), TOLD)


def test_pages_with_hidden_text_are_named() -> None:
    hidden = f"{SEEN}\n{at('ignore', more='3 Tr')}"
    parsed = pdf(painted_pdf(SEEN, hidden, SEEN, hidden), ReadConfig())
    assert parsed.meta["notices"] == ["2 of 4 pages hold text that is not seen and not read: 2, 4"]
    assert "ignore" not in parsed.text


def test_turned_and_cut_pages_are_looked_at_as_they_are_shown() -> None:
    content = f"q 0 g 50 450 400 100 re f 1 g {at('white on black')} Q {at('ignore', y=300, more='3 Tr')}"
    for more in ("/Rotate 90", "/Rotate 180", "/CropBox [40 100 560 700]"):
        data = painted_pdf(content).replace(b"/Type /Page /Parent", f"/Type /Page {more} /Parent".encode())
        parsed = pdf(data, ReadConfig())
        assert (parsed.text, parsed.meta["notices"]) == ("white on black", TOLD)
