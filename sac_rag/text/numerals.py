"""Numbers as lists write them."""

from __future__ import annotations

_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"),
          (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip


def numeral(number: int, style: str) -> str:
    """A number from 1 in a style of Word's: decimal, decimalZero, lowerLetter, upperRoman, …; others as decimal."""
    match style:
        case "decimalZero":
            return f"{number:02}"
        case "lowerLetter" | "upperLetter" if number > 0:
            letters = chr(ord("a") + (number - 1) % 26) * min(1 + (number - 1) // 26, 10)
            return letters.upper() if style == "upperLetter" else letters
        case "lowerRoman" | "upperRoman" if 0 < number < 4000:
            text = ""
            for value, sign in _ROMAN:
                text += sign * (number // value)
                number %= value
            return text.upper() if style == "upperRoman" else text
    return str(number)
