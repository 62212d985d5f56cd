"""Sheets as they are shown: formats of numbers, and what is hidden, which is left out and told."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from sac_rag.config import ReadConfig
from sac_rag.text.extract import Parsed
from sac_rag.text.number_formats import as_shown
from sac_rag.text.workbooks import sheets


def made(fill: Callable[[Any], None]) -> Parsed:
    """What is read of a workbook; `fill` gets its first sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    fill(book.active)
    out = io.BytesIO()
    book.save(out)
    return sheets(out.getvalue(), ReadConfig())


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (0.25, "0%", "25%"),
        (0.256, "0.0%", "25.6%"),
        (0.07, '"100% of "0%', "100% of 7%"),
        (1234.5, "#,##0.00", "1,234.50"),
        (1234.5, "[$\u20ac-407] #,##0.00", "\u20ac 1,234.50"),
        (-1234.5, '#,##0.00 "\u20ac"', "-1,234.50 \u20ac"),
        (-3, "$#,##0.00_);[Red]($#,##0.00)", "($3.00)"),
        (12.5, '_-* #,##0.00\\ "\u20ac"_-;-* #,##0.00\\ "\u20ac"_-;_-* "-"??\\ "\u20ac"_-;_-@_-', "12.50 \u20ac"),
        (0, '_-* #,##0.00_-;-* #,##0.00_-;_-* "-"??_-;_-@_-', "-"),
        (2.675, "0.00", "2.68"),
        (-0.001, "0.0", "0.0"),
        (0.5, "#.##", ".5"),
        (7, "000", "007"),
        (3.0, '0" kg"', "3 kg"),
        (1_234_567, '0.0,,"M"', "1.2M"),
        (1e15, "#,##0", "1,000,000,000,000,000"),
        (5, ";;;", ""),
        (0, "0;-0;;@", ""),
    ],
)
def test_numbers_as_they_are_shown(value: float, code: str, shown: str) -> None:
    assert as_shown(value, code) == shown


@pytest.mark.parametrize(
    "code", ["", "General", "@", "yyyy-mm-dd", "[h]:mm", "0.00E+00", "# ?/?", "000-0000", "[>3]0;0.0", "0[", '"']
)
def test_formats_of_other_kinds_are_left_to_the_reader(code: str) -> None:
    assert as_shown(3.5, code) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_has_no_format(value: float) -> None:
    assert as_shown(value, "0%") is None


def test_a_sheet_stands_as_it_is_shown() -> None:
    def fill(sheet: Any) -> None:
        for row in (["Flat", "Share", "Rent", "Keys"], ["3b", 0.25, 1700, 2], ["4a", 0.5, 900, 3]):
            sheet.append(row)
        for row in (2, 3):
            sheet[f"B{row}"].number_format = "0%"
            sheet[f"C{row}"].number_format = "[$\u20ac-407] #,##0.00"

    assert made(fill).text == (
        "Flat: 3b\nShare: 25%\nRent: \u20ac 1,700.00\nKeys: 2\n\nFlat: 4a\nShare: 50%\nRent: \u20ac 900.00\nKeys: 3"
    )


def rents(sheet: Any) -> None:
    for row in (["Flat", "Secret", "Rent"], ["3b", "x", 700], ["4a", "y", 900], ["5c", "z", 800]):
        sheet.append(row)


def hide_row(sheet: Any) -> None:
    sheet.row_dimensions[3].hidden = True


def hide_column(sheet: Any) -> None:
    sheet.column_dimensions["B"].hidden = True


def hide_both(sheet: Any) -> None:
    hide_row(sheet)
    hide_column(sheet)


ALL = "Flat: 3b\nSecret: x\nRent: 700\n\nFlat: 4a\nSecret: y\nRent: 900\n\nFlat: 5c\nSecret: z\nRent: 800"


@pytest.mark.parametrize(
    ("hide", "text", "told"),
    [
        (lambda sheet: None, ALL, []),
        (hide_row, "Flat: 3b\nSecret: x\nRent: 700\n\nFlat: 5c\nSecret: z\nRent: 800",
         ["1 hidden rows not read, of the sheets Sheet"]),
        (hide_column, "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900\n\nFlat: 5c\nRent: 800",
         ["1 hidden columns not read, of the sheets Sheet"]),
        (hide_both, "Flat: 3b\nRent: 700\n\nFlat: 5c\nRent: 800",
         ["1 hidden rows and 1 hidden columns not read, of the sheets Sheet"]),
    ],
)  # fmt: skip
def test_hidden_rows_and_columns_are_left_out_and_told(hide: Callable[[Any], None], text: str, told: list[str]) -> None:
    def fill(sheet: Any) -> None:
        rents(sheet)
        hide(sheet)

    parsed = made(fill)
    assert (parsed.text, parsed.meta.get("notices", [])) == (text, told)


def test_places_count_from_the_first_cell_of_a_sheet() -> None:
    def fill(sheet: Any) -> None:
        for row, values in ((4, ("Flat", "Share")), (5, ("3b", 0.5)), (6, ("4a", 0.1)), (7, ("5c", 0.4))):
            for column, value in zip("CE", values, strict=True):
                sheet[f"{column}{row}"] = value
                sheet[f"{column}{row}"].number_format = "0%"
        sheet.row_dimensions[6].hidden = True
        sheet.column_dimensions["A"].hidden = True  # holds nothing

    parsed = made(fill)
    assert parsed.text == "Flat: 3b\nShare: 50%\n\nFlat: 5c\nShare: 40%"
    assert parsed.meta["notices"] == ["1 hidden rows not read, of the sheets Sheet"]


def test_a_value_over_hidden_and_seen_rows_stays_and_notes_on_hidden_cells_go() -> None:
    from openpyxl.comments import Comment

    def fill(sheet: Any) -> None:
        for row in (["House", "Flat", "Rent"], ["North", "3b", 700], [None, "4a", 900]):
            sheet.append(row)
        sheet.merge_cells("A2:A3")
        sheet.row_dimensions[2].hidden = True
        sheet["B2"].comment = Comment("secret", "Ida")
        sheet["B3"].comment = Comment("is let", "Ida")

    assert made(fill).text == "House: North\nFlat: 4a\nRent: 900\n\nComment on B3 by Ida: is let"


def test_cells_whose_format_shows_nothing_are_told() -> None:
    def fill(sheet: Any) -> None:
        for row in (["Flat", "Rent", "Code"], ["3b", 700, 4711], ["4a", 900, 4712]):
            sheet.append(row)
        sheet["C2"].number_format = sheet["C3"].number_format = ";;;"

    parsed = made(fill)
    assert parsed.text == "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"
    assert parsed.meta["notices"] == ["cells whose format shows nothing left out: 2"]


def open_sheet(columns: str, *rows: str) -> Parsed:
    names = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "table", "text")
    )
    content = (
        f"<office:document-content {names}><office:body><office:spreadsheet><table:table table:name='Rents'>{columns}"
        f"{''.join(rows)}</table:table></office:spreadsheet></office:body></office:document-content>"
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("content.xml", content)
        archive.writestr("META-INF/manifest.xml", "<manifest/>")
    return sheets(out.getvalue(), ReadConfig())


def open_row(*cells: tuple[str, str], more: str = "") -> str:
    """Cells: (value, what is shown)."""
    inner = "".join(
        "<table:table-cell office:value-type="
        + (f"'percentage' office:value='{value}'" if value else "'string'")
        + f"><text:p>{shown}</text:p></table:table-cell>"
        for value, shown in cells
    )
    return f"<table:table-row {more}>{inner}</table:table-row>"


def test_open_document_sheets_stand_as_they_are_shown() -> None:
    parsed = open_sheet(
        "<table:table-column/><table:table-column table:visibility='collapse'/><table:table-column/>",
        open_row(("", "Flat"), ("", "Secret"), ("", "Share")),
        open_row(("", "3b"), ("", "x"), ("0.25", "25 %")),
        open_row(("", "4a"), ("", "y"), ("0.1", "10 %"), more="table:visibility='filter'"),
        open_row(("", "5c"), ("", "z"), ("0.65", "65 %")),
    )
    assert parsed.text == "Flat: 3b\nShare: 25 %\n\nFlat: 5c\nShare: 65 %"
    assert parsed.meta["notices"] == ["1 hidden rows and 1 hidden columns not read, of the sheets Rents"]
