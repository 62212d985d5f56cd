"""Numbers as a sheet shows them: 0.25 in the format 0% is 25%."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation, localcontext

BUILT_IN = {
    1: "0",
    2: "0.00",
    3: "#,##0",
    4: "#,##0.00",
    5: "$#,##0;($#,##0)",
    6: "$#,##0;($#,##0)",
    7: "$#,##0.00;($#,##0.00)",
    8: "$#,##0.00;($#,##0.00)",
    9: "0%",
    10: "0.00%",
    37: "#,##0;(#,##0)",
    38: "#,##0;(#,##0)",
    39: "#,##0.00;(#,##0.00)",
    40: "#,##0.00;(#,##0.00)",
    41: '#,##0;(#,##0);"-"',
    42: '$#,##0;($#,##0);"-"',
    43: '#,##0.00;(#,##0.00);"-"',
    44: '$#,##0.00;($#,##0.00);"-"',
}
"""Formats that a workbook names by number alone, in the form of the United States. Others are of dates or plain."""
MOST_DECIMALS = 30
_TOKEN = re.compile(r'"([^"]*)"|\\(.)|[_*].|\[\$([^\]-]*)[^\]]*\]|\[[^\]]*\]|(.)', re.DOTALL)
_SECTION = re.compile(r'(?:"[^"]*"|\\.|\[[^\]]*\]|[^;"\\\[]|["\\\[])*', re.DOTALL)
_CONDITION = re.compile(r"\[(?:[<>=]|h+\]|m+\]|s+\]|DBNum)")
_COLOURS = re.compile(r"(?i)\[(?:black|blue|cyan|green|magenta|red|white|yellow|color ?\d+)\]")
_NUMBER = re.compile(r"[0#?][0#?,]*(?:\.[0#?]*)?,*|\.[0#?]+,*")
_LITERAL = frozenset(" $-+/():!^&'~{}<>=\u20ac\u00a3\u00a5\u00a0")
"""Characters that stand for themselves without quotation marks."""


_SIGN = "\ue000"
"""Stands for a percent sign within a text, which multiplies nothing."""


def as_shown(value: float, code: str) -> str | None:
    """A number in a format; "" where the format shows nothing, None for formats of other kinds: dates, fractions,
    powers of ten, conditions."""
    sections = _sections(code)
    if code.strip().lower() in ("", "general", "@") or _CONDITION.search(code):
        return None
    section, is_signed = _section_for(value, sections)
    if not section.strip():
        return ""
    before, pattern, after = _parts(_COLOURS.sub("", section)) or ("", None, "")
    if pattern is None:
        return None
    try:
        number = abs(Decimal(repr(float(value))))
    except InvalidOperation:
        return None
    if not number.is_finite():
        return None
    digits = _digits(number, pattern, (before + after).count("%")) if pattern else ""
    sign = "-" if is_signed and re.search("[1-9]", digits) else ""
    return f"{sign}{before}{digits}{after}".replace(_SIGN, "%").strip()


def _sections(code: str) -> list[str]:
    found, at = [], 0
    while at <= len(code):
        match = _SECTION.match(code, at)
        assert match is not None
        found.append(match[0])
        at = match.end() + 1
    return found


def _section_for(value: float, sections: list[str]) -> tuple[str, bool]:
    """(the part of a format that a number is shown by, whether a minus is put in front)."""
    if value < 0:
        return (sections[1], False) if len(sections) > 1 else (sections[0], True)
    return sections[2] if value == 0 and len(sections) > 2 else sections[0], False


def _parts(section: str) -> tuple[str, str, str] | None:
    """(what stands before the digits, their pattern, what stands behind); None for formats of other kinds."""
    places, texts = list[str](), list[tuple[int, str]]()
    for match in _TOKEN.finditer(section):
        quoted, escaped, currency, single = match.groups()
        text = quoted or escaped or currency or ""
        if single is None:
            if text:
                texts.append((len(places), text.replace("%", _SIGN)))
        elif single in "0#?,.":
            places.append(single)
        elif single in _LITERAL or single == "%":
            texts.append((len(places), single))
        else:
            return None
    pattern = "".join(places)
    if pattern and not _NUMBER.fullmatch(pattern):
        return None
    if any(0 < at < len(places) for at, _ in texts):  # texts between digits, as in telephone numbers
        return None
    before = "".join(text for at, text in texts if at == 0 and pattern)
    return before, pattern, "".join(text for at, text in texts if at or not pattern)


def _digits(number: Decimal, pattern: str, percents: int) -> str:
    whole, _, decimals = pattern.rstrip(",").partition(".")
    least, most = decimals.count("0"), min(len(decimals), MOST_DECIMALS)
    thousands = len(pattern) - len(pattern.rstrip(","))
    with localcontext(prec=400):  # of the largest number there is
        number = number.scaleb(2 * percents - 3 * thousands)
        number = number.quantize(Decimal(1).scaleb(-most), ROUND_HALF_UP)
    before, _, after = f"{number:f}".partition(".")
    before = before.lstrip("0").rjust(whole.count("0"), "0")
    while len(after) > least and after.endswith("0"):
        after = after[:-1]
    if "," in whole:
        before = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", before)
    return f"{before}.{after}" if after else before
