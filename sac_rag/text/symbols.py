"""Characters of fonts that draw other signs than their codes say: Symbol and Wingdings."""

# ruff: noqa: RUF001

from __future__ import annotations

import re

_SYMBOL = dict(
    zip(
        [*range(0x21, 0x7F), *range(0xA1, 0xF0), *range(0xF1, 0xFF)],
        "!∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_‾αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼"
        "ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…⏐⎯↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊〈®©™∑⎛⎜⎝⎡⎢⎣⎧⎨⎩⎪"
        "〉∫⌠⎮⌡⎞⎟⎠⎤⎥⎦⎫⎬⎭",
        strict=True,
    )
)
_WINGDINGS = {
    0x6C: "●", 0x6E: "■", 0x6F: "□", 0x71: "❑", 0x72: "❒", 0x75: "◆", 0x76: "❖", 0x9F: "•", 0xA7: "▪", 0xA8: "☐",
    0xD8: "➢", 0xDF: "←", 0xE0: "→", 0xE1: "↑", 0xE2: "↓", 0xE8: "➔", 0xF0: "⇨", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒",
    0xFE: "☑",
}  # fmt: skip
RAISED = "\x0e"
"""Stands before raised text until it is known what is in front of it."""
_EXPONENT = re.compile(r"(?<=[\d)])\x0e(?=[-+\u2212\u2013]?\d)")
"""Where a raised number would run into another one."""
_PRIVATE = re.compile("[\uf020-\uf0ff]")


def sign(font: str, code: int) -> str:
    """What a character of a font shows; empty for signs without a counterpart in Unicode."""
    code = code & 0xFF if 0xF000 <= code <= 0xF0FF else code
    return (_SYMBOL if font.lower() == "symbol" else _WINGDINGS).get(code, "")


def shown(text: str, font: str) -> str:
    """A text whose characters of private use, which such fonts have in files, are those that they show."""
    return _PRIVATE.sub(lambda match: sign(font, ord(match[0])), text)


def with_exponents(text: str) -> str:
    """A text in which raised numbers behind numbers stand behind a ^, and nothing marks other raised text."""
    return _EXPONENT.sub("^", text).replace(RAISED, "")
