"""Files of records, one of which is bad: it costs only itself, and is told; a file of bad ones alone is an error."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import MAX_MARKS, Refused
from sac_rag.text.extract import Parsed
from sac_rag.text.mail import eml
from sac_rag.text.parsers import ipynb
from sac_rag.text.parts import numbered
from sac_rag.text.tables import csv_rows, tsv_rows
from sac_rag.text.values import json_lines, json_values
from sac_rag.text.xml import xml

Reader = Callable[[bytes, ReadConfig], Parsed]
MARKS = "x" + "\u0301" * (MAX_MARKS + 1)
"""A text that is refused."""
STACKED = f"over {MAX_MARKS} combining marks in a row"
DEEP = '{"a": ' + "[" * 3000 + "]" * 3000 + "}"


def notebook(*cells: object) -> str:
    return json.dumps({"cells": cells, "nbformat": 4})


def cell(source: object) -> dict[str, object]:
    return {"cell_type": "code", "source": source}


def mails(*parts: str) -> str:
    return "\n\n".join(f"From a@x Mon Jan  1 00:00:00 2024\n{part}" for part in parts)


@pytest.mark.parametrize(
    ("reader", "source", "text", "notice"),
    [
        (json_lines, '{"a": 1}\noops\n{"a": 2}', "a: 1\n\na: 2", "1 of 3 lines left out, not valid json: 2"),
        (json_lines, '{"a": 1}\n\n{"a":\n{"a": 2}\n{"a"\n{"a": "cut', "a: 1\n\na: 2",
         "3 of 5 lines left out, not valid json: 3, 5-6"),
        (json_lines, 'oops\n{"a": 1}', "a: 1", "1 of 2 lines left out, not valid json: 1"),
        (json_lines, f'{{"a": 1}}\n{DEEP}\n{{"a": 2}}', "a: 1\n\na: 2", "1 of 3 lines left out, not valid json: 2"),
        (json_lines, f'{{"a": 1}}\n{{"n": 0, "a": "{MARKS}"}}\n{{"a": 2}}', "a: 1\n\na: 2",
         f"1 of 3 lines left out, {STACKED}: 2"),
        (json_lines, '{\n "a": 1\n}\n{\n "a": oops\n}\n{\n "a": 2\n}\n', "a: 1\n\na: 2",
         "1 of 3 records left out, not valid json: line 4"),
        (json_lines, '[\n{"a": 1},\noops,\n{"a": 2}\n]', "a: 1\n\na: 2",
         "3 of 5 records left out, not valid json: line 1, 3, 5"),
        (json_values, '{"a": 1}\n{"a": oops}\n{"a": 2}', "a: 1\n\na: 2", "1 of 3 lines left out, not valid json: 2"),
        (json_values, f'[{{"a": 1}}, {{"a": "{MARKS}"}}, {{"a": 2}}]', "a: 1\n\na: 2",
         f"1 of 3 records left out, {STACKED}: 2"),
        (csv_rows, f"Flat,Rent\n3b,700\n4a,{MARKS}\n5c,900\n", "Flat: 3b\nRent: 700\n\nFlat: 5c\nRent: 900",
         f"1 of 3 rows left out, {STACKED}: 2"),
        (tsv_rows, f"Flat\tRent\n{MARKS}\t700\n4a\t900\n", "Flat: 4a\nRent: 900",
         f"1 of 2 rows left out, {STACKED}: 1"),
        (eml, mails("Subject: One\n\nword", f"Subject: Two\n\n{MARKS}", "Subject: Three\n\nlast"),
         "One\n\nword\n\nThree\n\nlast", f"1 of 3 messages left out, {STACKED}: 2"),
        (eml, mails("no headers", "Subject: Two\n\nlast"), "Two\n\nlast",
         "1 of 2 messages left out, damaged message: 1"),
        (ipynb, notebook(cell("one"), 7, cell({"no": "text"}), cell(["t", "wo"])), "one\n\ntwo",
         "2 of 4 cells left out, damaged cell: 2-3"),
        (ipynb, notebook(cell("one"), cell(MARKS)), "one", f"1 of 2 cells left out, {STACKED}: 2"),
        (xml, f"<flats><rent>700</rent><rent>{MARKS}</rent><rent>900</rent></flats>", "rent: 700\nrent: 900",
         f"1 of 3 elements left out, {STACKED}: 2"),
    ],
)  # fmt: skip
def test_a_bad_part_costs_only_itself(reader: Reader, source: str, text: str, notice: str) -> None:
    parsed = reader(source.encode(), ReadConfig())
    assert (parsed.text, parsed.meta["notices"]) == (text, [notice])


@pytest.mark.parametrize(
    ("reader", "source", "reason"),
    [
        (json_lines, "oops\n\n{a}\n", "2 of 2 lines left out, not valid json: 1, 3"),
        (json_values, "oops", "not valid json"),
        (csv_rows, f"Flat,Rent\n3b,{MARKS}\n4a,{MARKS}\n", f"2 of 2 rows left out, {STACKED}: 1-2"),
        (eml, mails("no headers"), "damaged message"),
        (ipynb, notebook(1, "two"), "2 of 2 cells left out, damaged cell: 1-2"),
        (xml, f"<a><b>{MARKS}</b></a>", STACKED),
    ],
)  # fmt: skip
def test_no_sound_part_is_an_error(reader: Reader, source: str, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        reader(source.encode(), ReadConfig())
    assert str(caught.value) == reason


def test_headings_of_a_bad_part_go_with_it() -> None:
    source = f'{{"title": "Gone", "text": "{MARKS}"}}\n{{"title": "Gate", "text": "Closes."}}'
    assert json_lines(source.encode(), ReadConfig()).headings == [(0, 1, "Gate")]


def test_a_text_over_the_limit_is_no_bad_part() -> None:
    with pytest.raises(Refused, match="text over 9 characters"):
        json_lines(b'{"a": 1}\n{"a": "much too long"}', ReadConfig(text_chars=9))


def test_numbers_of_many_parts_stay_short() -> None:
    assert numbered([1, 2, 3, 7, 9, 10], 12, "lines") == "6 of 12 lines: 1-3, 7, 9-10"
    assert len(numbered(range(1, 100_000, 2), 100_000, "lines")) < 250
