"""How well extractors read PDFs: made pages whose reading order is known, and folders of NAME.pdf beside NAME.txt.

    python scripts/pdf_extractors.py [FOLDER ...]

Prints, for the project's reader and for whichever of pypdf, pypdfium2, pdfminer.six, pdfplumber and pdftext are
installed, the share of words in the right order (twice the longest common subsequence over both lengths; blocks of
difflib) and processor seconds per hundred pages.
"""

from __future__ import annotations

import difflib
import io
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sac_rag.config import ReadConfig
from sac_rag.text.pdf import pdf

if TYPE_CHECKING:
    from fpdf import FPDF

WORDS = (
    "lease begins first may ends after two years pets allowed yard never laundry room gate closes nine evening weekdays"
    " ferry island departs every hours pier four permits cost forty euros issued front desk laboratory requires goggles"
    " signed safety form breakfast served until half past ten operator checks valve before each start reports pressure"
).split()
Made = tuple[bytes, str]
"""(a PDF, its text in reading order)."""


def main() -> None:
    sets: dict[str, list[Made]] = {name: [make(seed) for seed in range(3)] for name, make in KINDS.items()}
    for folder in map(Path, sys.argv[1:]):
        sets[folder.name] = [
            (path.read_bytes(), path.with_suffix(".txt").read_text("utf-8")) for path in sorted(folder.glob("*.pdf"))
        ]
    print(f"{'':24}" + "".join(f"{name:>14}" for name in sets) + f"{'s/100 pages':>14}")
    for name, extract in EXTRACTORS.items():
        try:
            shares = {
                kind: sum(_share(extract(data), text) for data, text in made) / len(made) for kind, made in sets.items()
            }
            seconds = _seconds(extract)
        except ImportError as missing:
            print(f"{name:24}{missing.name} is not installed")
            continue
        print(f"{name:24}" + "".join(f"{100 * share:14.1f}" for share in shares.values()) + f"{seconds:14.2f}")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _share(found: str, wanted: str) -> float:
    return difflib.SequenceMatcher(None, found.split(), wanted.split(), autojunk=False).ratio()


def _seconds(extract: Callable[[bytes], str]) -> float:
    lines = "\n".join(_sentence(random.Random(n), 14) for n in range(45))
    page = _document()
    for _ in range(50):
        page.add_page()
        page.multi_cell(0, 5, lines)
    data = bytes(page.output())
    began = time.process_time()
    extract(data)
    return 2 * (time.process_time() - began)


# Pages


def _document() -> FPDF:
    from fpdf import FPDF

    page = FPDF()
    page.set_font("helvetica", size=10)
    page.set_auto_page_break(False)
    return page


def _sentence(choice: random.Random, words: int) -> str:
    return (" ".join(choice.choices(WORDS, k=words)) + ".").capitalize()


def _paragraph(choice: random.Random, width: int, lines: int) -> list[str]:
    """Lines of at most `width` characters."""
    import textwrap

    text = " ".join(_sentence(choice, choice.randint(8, 20)) for _ in range(lines))
    return textwrap.wrap(text, width)[:lines]


def columns(seed: int, by_row: bool) -> Made:
    """Two columns of thirty lines under a heading, drawn one after the other or line by line."""
    choice, page = random.Random(seed), _document()
    left, right = _paragraph(choice, 46, 30), _paragraph(choice, 46, 30)
    page.add_page()
    page.text(10, 20, "Rules of the house")
    places = [(10, 30 + 5 * n, line) for n, line in enumerate(left)]
    beside = [(110, 30 + 5 * n, line) for n, line in enumerate(right)]
    drawn = [p for pair in zip(places, beside, strict=True) for p in pair] if by_row else places + beside
    for x, y, line in drawn:
        page.text(x, y, line)
    return bytes(page.output()), " ".join(["Rules of the house", *left, *right])


def letter_spaced(seed: int) -> Made:
    """Headings whose letters are placed one by one, at one distance."""
    choice, page = random.Random(seed), _document()
    page.add_page()
    lines = []
    for n in range(12):
        words = choice.sample([w for w in WORDS if len(w) > 4], 2)
        x = 10.0
        for word in words:
            for letter in word:
                page.text(x, 20 + 20 * n, letter)
                x += 3.2
            x += 6
        body = _sentence(choice, 10)
        page.text(10, 28 + 20 * n, body)
        lines += [*words, body]
    return bytes(page.output()), " ".join(lines)


def running_heads(seed: int) -> Made:
    """Twelve pages with a head and a page number, wanted once and never."""
    choice, page = random.Random(seed), _document()
    wanted = ["Manual of the north pier"]
    for number in range(1, 13):
        page.add_page()
        page.text(10, 12, "Manual of the north pier")
        for n, line in enumerate(_paragraph(choice, 90, 20)):
            page.text(10, 40 + 6 * n, line)
            wanted.append(line)
        page.text(100, 287, f"Page {number} of 12")
    return bytes(page.output()), " ".join(wanted)


def table(seed: int, by_row: bool) -> Made:
    """Twenty rows of four cells, drawn row by row or column by column."""
    choice, page = random.Random(seed), _document()
    page.add_page()
    rows = [["Item", "Pier", "Price", "Stock"]]
    rows += [
        [choice.choice(WORDS).capitalize(), choice.choice("ABCD"), *map(str, choice.choices(range(1, 900), k=2))]
        for _ in range(20)
    ]
    cells = [
        (10 + 40 * column, 20 + 7 * row, text) for row, texts in enumerate(rows) for column, text in enumerate(texts)
    ]
    for x, y, text in cells if by_row else sorted(cells):
        page.text(x, y, text)
    return bytes(page.output()), " ".join(text for texts in rows for text in texts)


def hyphenated(seed: int) -> Made:
    """Justified lines that break long words."""
    choice, page = random.Random(seed), _document()
    page.add_page()
    words = choice.choices([w for w in WORDS if len(w) > 5], k=60)
    for n, word in enumerate(words):
        half = len(word) // 2
        page.text(
            10, 15 + 4.5 * n, ("" if n == 0 else words[n - 1][len(words[n - 1]) // 2 :] + " then ") + word[:half] + "-"
        )
    page.text(10, 15 + 4.5 * len(words), words[-1][len(words[-1]) // 2 :])
    return bytes(page.output()), " then ".join(words)


KINDS: dict[str, Callable[[int], Made]] = {
    "columns": lambda seed: columns(seed, by_row=False),
    "by lines": lambda seed: columns(seed, by_row=True),
    "letters": letter_spaced,
    "heads": running_heads,
    "table": lambda seed: table(seed, by_row=True),
    "by columns": lambda seed: table(seed, by_row=False),
    "hyphens": hyphenated,
}


# Extractors


def _own(data: bytes) -> str:
    return pdf(data, ReadConfig(text_chars=10**9)).text


def _pypdf(data: bytes) -> str:
    from pypdf import PdfReader

    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)


def _pypdfium2(data: bytes) -> str:
    import pypdfium2

    return "\n".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(data))


def _pdfminer(data: bytes) -> str:
    from pdfminer.high_level import extract_text

    return extract_text(io.BytesIO(data))


def _pdfplumber(data: bytes) -> str:
    import pdfplumber

    with pdfplumber.open(io.BytesIO(data)) as document:
        return "\n".join(page.extract_text() for page in document.pages)


def _pdftext(data: bytes) -> str:
    from pdftext.extraction import plain_text_output

    with tempfile.NamedTemporaryFile(suffix=".pdf") as file:
        file.write(data)
        file.flush()
        return plain_text_output(file.name, sort=True, hyphens=False)


EXTRACTORS = {
    "this project": _own,
    "pypdf": _pypdf,
    "pypdfium2": _pypdfium2,
    "pdfminer.six": _pdfminer,
    "pdfplumber": _pdfplumber,
    "pdftext": _pdftext,
}

if __name__ == "__main__":
    main()
