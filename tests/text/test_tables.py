"""Tables as spreadsheets and exports write them, and workbooks."""

from __future__ import annotations

import datetime
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sac_rag.config import ReadConfig
from sac_rag.errors import DocumentError
from sac_rag.text.readers import read
from sac_rag.text.tables import csv_rows, tsv_rows
from sac_rag.text.values import json_lines, json_values
from sac_rag.text.workbooks import sheets


def text_of(source: str | bytes) -> str:
    return csv_rows(source.encode() if isinstance(source, str) else source, ReadConfig()).text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        # what stands above the table
        ("sep=|\nFlat|Rent\n3b|700\n", "Flat: 3b\nRent: 700"),
        ('"sep=\t"\nFlat\tRent\n3b\t700\n', "Flat: 3b\nRent: 700"),
        ("\ufeffsep=,\r\nFlat,Rent\r\n3b,700\r\n", "Flat: 3b\nRent: 700"),
        ("\n\n\nFlat;Rent\n3b;700\n", "Flat: 3b\nRent: 700"),
        (";;\n;;\nFlat;Rent;Keys\n3b;700;2\n4a;900;1", "Flat: 3b\nRent: 700\nKeys: 2\n\nFlat: 4a\nRent: 900\nKeys: 1"),
        ("Rents in May\nFlat;Rent\n3b;700\n4a;900\n", "Rents in May\n\nFlat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"),
        (
            "Rents\nhouse 7, first floor\n\nFlat;Rent;Keys\n3b;700;2\n4a;900;1\n",
            "Rents\n\nhouse 7, first floor\n\nFlat: 3b\nRent: 700\nKeys: 2\n\nFlat: 4a\nRent: 900\nKeys: 1",
        ),
        ("# by the landlord, in May\n# second line\nFlat,Rent\n3b,700\n4a,900\n",
         "# by the landlord in May\n\n# second line\n\nFlat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"),
        # delimiters
        ("Flat (floor, side);Rent, cold;Note\n3b;700;none\n", "Flat (floor, side): 3b\nRent, cold: 700\nNote: none"),
        ("Flat~Rent\n3b~700\n4a~900", "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"),
        ("when,temp\n10:30:00,5\n10:31:00,6\n", "when: 10:30:00\ntemp: 5\n\nwhen: 10:31:00\ntemp: 6"),
        ("Flat;Rent\n3b;1.200,50\n4a;900,00\n", "Flat: 3b\nRent: 1.200,50\n\nFlat: 4a\nRent: 900,00"),
        ("remarks\nloud, dark\nquiet\ncheap, near, dry\n",
         "remarks: loud, dark\n\nremarks: quiet\n\nremarks: cheap, near, dry"),
        ("one\ntwo\nthree", "one: two\n\none: three"),
        # quotes
        ('Flat, Note\n3b, "damp, dark"\n4a, "x"\n', "Flat: 3b\nNote: damp, dark\n\nFlat: 4a\nNote: x"),
        ('Flat;Note\n3b;"said ""no"""\n4a;ok\n', 'Flat: 3b\nNote: said "no"\n\nFlat: 4a\nNote: ok'),
        ('Flat,Note\n3b,"a \\"wet\\" room, dark"\n4a,dry\n',
         'Flat: 3b\nNote: a "wet" room, dark\n\nFlat: 4a\nNote: dry'),
        ('Flat,Note\n3b,"line one\nline two\nline three\nline four"\n',
         "Flat: 3b\nNote: line one\nline two\nline three\nline four"),
        ('Flat,Size\n3b,"5 inch pipe\n4a,6\n', 'Flat: 3b\nSize: "5 inch pipe\n\nFlat: 4a\nSize: 6'),
        # headers
        ("7,3.5\n8,4.5\n9,1.0\n",
         "column 1: 7\ncolumn 2: 3.5\n\ncolumn 1: 8\ncolumn 2: 4.5\n\ncolumn 1: 9\ncolumn 2: 1.0"),
        ("Town,2019,2020\nOslo,7,8\nBonn,5,6\n", "Town: Oslo\n2019: 7\n2020: 8\n\nTown: Bonn\n2019: 5\n2020: 6"),
        ("#id,name\n1,x\n2,y\n", "id: 1\nname: x\n\nid: 2\nname: y"),
        (",2019,,2020,\nTown,dry,wet,dry,wet\nOslo,1,2,3,4\n",
         "Town: Oslo\n2019 dry: 1\n2019 wet: 2\n2020 dry: 3\n2020 wet: 4"),
        ("Town,Days,\n,dry,wet\nOslo,1,2\nBonn,3,4\n",
         "Town: Oslo\nDays dry: 1\nDays wet: 2\n\nTown: Bonn\nDays dry: 3\nDays wet: 4"),
        # rows that are none
        ("Flat,Rent\n3b,700\n4a,900\nSource: the landlord\n",
         "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900\n\nSource: the landlord"),
        ("Flat,Rent\n3b,700\n# let again\n4a,900\n", "Flat: 3b\nRent: 700\n\n# let again\n\nFlat: 4a\nRent: 900"),
        ("| Flat | Rent |\n|------|------|\n| 3b | 700 |\n", "Flat: 3b\nRent: 700"),
        ("Flat,Rent\n3b,700\n\nTotal,700\n", "Flat: 3b\nRent: 700\n\nFlat: Total\nRent: 700"),
        # several tables
        ("Income\nWhat,Euro\nrent,5\nfees,6\n\nCosts\nItem,Per,Sum\noil,m,7\n",
         "Income\n\nWhat: rent\nEuro: 5\n\nWhat: fees\nEuro: 6\n\nCosts\n\nItem: oil\nPer: m\nSum: 7"),
        ("Flat,Rent\n3b,700\n4a,900\n\nYear,Keys\n2020,4\n",
         "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900\n\nYear: 2020\nKeys: 4"),
        ("Flat,Rent\n3b,700\nSouth side\n4a,900\n", "Flat: 3b\nRent: 700\n\nSouth side\n\nFlat: 4a\nRent: 900"),
        # rows of unequal width, other marks
        ("a,b,c\n1,2\n3,4,5,6\n", "a: 1\nb: 2\n\na: 3\nb: 4\nc: 5\ncolumn 4: 6"),
        ("Flat,Note\n'3b','damp, dark'\n'4a','it''s dry'\n", "Flat: 3b\nNote: damp, dark\n\nFlat: 4a\nNote: it's dry"),
        ("Name,Note\nO'Neil,'s room\nIda,d'accord\n", "Name: O'Neil\nNote: 's room\n\nName: Ida\nNote: d'accord"),
        ('Zip,Note\n="00123",x\n="0045",y\n', "Zip: 00123\nNote: x\n\nZip: 0045\nNote: y"),
        (",Rent\n3b,700\n4a,900\n", "column 1: 3b\nRent: 700\n\ncolumn 1: 4a\nRent: 900"),
    ],
)  # fmt: skip
def test_tables(source: str, text: str) -> None:
    assert text_of(source) == text
    assert text_of(source.replace("\r\n", "\n").replace("\n", "\r\n")) == text


def test_tables_without_tabs_under_their_name() -> None:
    assert tsv_rows(b"Flat,Rent\n3b,700\n4a,900\n", ReadConfig()).text == "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"


def test_delimiters_alone_are_no_text() -> None:
    assert text_of(",,,\n,,,\n") == ""


@pytest.mark.parametrize("at", [1, 10, 500, 999])
@pytest.mark.parametrize("stray", ['"6 inches', '"', '"old" stock'])
def test_a_stray_quotation_mark_swallows_no_rows(at: int, stray: str) -> None:
    rows = [f"part {n},{n} mm,shelf {n % 7}" for n in range(1000)]
    rows[at] = f"part {at},{stray},shelf x"
    text = text_of("Part,Size,Place\n" + "\n".join(rows))
    assert text.count("Part: ") == 1000
    assert f"Part: part {at}\nSize: {stray}\nPlace: shelf x" in text
    assert text.endswith("Place: shelf x" if at == 999 else "Part: part 999\nSize: 999 mm\nPlace: shelf 5")


def test_two_stray_marks_far_apart_swallow_no_rows() -> None:
    rows = [f"part {n}\t{n} mm" for n in range(300)]
    rows[20], rows[250] = 'bolt\t"6', 'nut\t"7'
    text = tsv_rows(("Part\tSize\n" + "\n".join(rows)).encode(), ReadConfig()).text
    assert text.count("Part: ") == 300
    assert 'Part: bolt\nSize: "6' in text


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig", "mac-roman"])
def test_what_excel_saves(encoding: str) -> None:
    source = "Straße;Bürgermeister;Gebühr\nAllee 5;Jörg Müller;zwölf\nRosenweg 3;Käthe Größe;fünf\n"
    assert text_of(source.encode(encoding)) == (
        "Straße: Allee 5\nBürgermeister: Jörg Müller\nGebühr: zwölf\n\n"
        "Straße: Rosenweg 3\nBürgermeister: Käthe Größe\nGebühr: fünf"
    )


# Workbooks


def workbook() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "Rents"
    for row in (["Rents of house 7"], [], ["Flat", "Rent", "Since", "Cold"],
                ["3b", 700.0, datetime.date(2024, 5, 1), True],
                ["4a", 912.5, datetime.datetime(2023, 1, 2, 8, 30), False]):  # fmt: skip
        book.active.append(row)
    book.create_sheet("Empty")
    keys = book.create_sheet("Keys")
    keys.append(["Flat", "Keys"])
    keys.append(["3b", 2])
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def test_workbooks(tmp_path: Path) -> None:
    path = tmp_path / "rents.xlsx"
    path.write_bytes(workbook())
    document = read(path)
    assert document.text == (
        "Rents\n\nRents of house 7\n\nFlat: 3b\nRent: 700\nSince: 2024-05-01\nCold: true\n\n"
        "Flat: 4a\nRent: 912.5\nSince: 2023-01-02 08:30:00\nCold: false\n\nKeys\n\nFlat: 3b\nKeys: 2"
    )
    assert [path for _, path in document.headings] == ["Rents", "Rents > Rents of house 7", "Keys"]


def made(fill: Callable[[Any], None]) -> bytes:
    """A workbook; `fill` gets its first sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    fill(book.active)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def test_merged_cells_count_for_each_row() -> None:
    def fill(sheet: Any) -> None:
        for row in (
            ["Rents of May"],
            ["Flat", "Rent", None],
            [None, "cold", "warm"],
            ["3b", 500, 700],
            [None, 600, 800],
        ):
            sheet.append(row)
        for cells in ("A1:C1", "A2:A3", "B2:C2", "A4:A5"):
            sheet.merge_cells(cells)

    assert sheets(made(fill), ReadConfig()).text == (
        "Rents of May\n\nFlat: 3b\nRent cold: 500\nRent warm: 700\n\nFlat: 3b\nRent cold: 600\nRent warm: 800"
    )


def test_hidden_sheets_and_formulas_without_values_are_told() -> None:
    def fill(sheet: Any) -> None:
        for row in (["Flat", "Sum"], ["3b", "=1+1"], ["4a", "=1/0"]):
            sheet.append(row)
        for name, state in (("Lists", "hidden"), ("Keys", "veryHidden")):
            other = sheet.parent.create_sheet(name)
            other.append(["secret", "words"])
            other.sheet_state = state

    parsed = sheets(made(fill), ReadConfig())
    assert parsed.text == "Flat: 3b\n\nFlat: 4a"
    assert parsed.meta["notices"] == [
        "2 hidden sheets not read: Lists, Keys",
        "formulas without a stored value left out: 2",
    ]


def test_notes_on_cells_and_lengths_of_time() -> None:
    from openpyxl.comments import Comment

    def fill(sheet: Any) -> None:
        sheet.append(["Flat", "Worked"])
        sheet.append(["3b", datetime.timedelta(hours=30, minutes=5)])
        sheet["A2"].comment = Comment("Ida:\nis let", "Ida")

    assert sheets(made(fill), ReadConfig()).text == "Flat: 3b\nWorked: 30:05:00\n\nComment on A2 by Ida: is let"


@pytest.mark.parametrize("far", ["XFD1048576", pytest.param("A1048576", marks=pytest.mark.minutes), "CV900000"])
def test_cells_far_apart_take_no_room(far: str) -> None:
    def fill(sheet: Any) -> None:
        for row in (["Flat", "Rent"], ["3b", 700], ["4a", 900]):
            sheet.append(row)
        sheet[far] = "far away"

    text = sheets(made(fill), ReadConfig()).text
    assert text.startswith("Flat: 3b\nRent: 700")
    assert text.endswith("far away")


@pytest.mark.parametrize(
    "content",
    [
        b"<html><table><tr><td>Flat</td><td>Rent</td></tr><tr><td>3b</td><td>700</td></tr></table></html>",
        b"\xef\xbb\xbf \n<TABLE><tr><td>Flat<td>Rent<tr><td>3b<td>700</TABLE>",
    ],
)
def test_web_pages_under_the_name_of_a_workbook(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "export.xls"
    path.write_bytes(content)
    assert read(path).text == "Flat | Rent\n3b | 700"


def test_lines_with_tabs_under_the_name_of_a_workbook(tmp_path: Path) -> None:
    path = tmp_path / "export.xls"
    path.write_bytes(b"Flat\tRent\n3b\t700\n4a\t900\n")
    assert read(path).text == "Flat: 3b\nRent: 700\n\nFlat: 4a\nRent: 900"


def test_open_document_sheets() -> None:
    from odf.opendocument import OpenDocumentSpreadsheet
    from odf.table import Table, TableCell, TableRow
    from odf.text import P

    book = OpenDocumentSpreadsheet()
    table = Table(name="Rents")
    for row in (["Flat", "Rent"], ["3b", "700"]):
        line = TableRow()
        for cell in row:
            box = TableCell(valuetype="string")
            box.addElement(P(text=cell))
            line.addElement(box)
        table.addElement(line)
    book.spreadsheet.addElement(table)
    out = io.BytesIO()
    book.save(out)
    assert sheets(out.getvalue(), ReadConfig()).text == "Flat: 3b\nRent: 700"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"PK\x03\x04 nonsense", "damaged workbook"), (b"\xd0\xcf\x11\xe0 nonsense", "damaged workbook")],
)
def test_damaged_workbooks(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert caught.value.reason == reason


def test_a_workbook_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        for n in range(3):
            parts.writestr(f"xl/worksheets/sheet{n}.xml", bytes(100_000_000))
    with pytest.raises(DocumentError, match="unzips to over"):
        read(path)


# Records


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ('{"title": "Gate", "text": "Closes at nine."}', "Gate\n\nCloses at nine."),
        ('{"id": 7, "text": "Closes at nine.", "tags": ["gate", "hours"]}',
         "Closes at nine.\nid: 7\ntags: gate, hours"),
        ('{"name": "Gate", "content": "Closes.", "meta": {"by": "Ida"}}', "Gate\n\nCloses.\nmeta.by: Ida"),
        ('{"text": "Closes.", "content": "At nine."}', "Closes.\ncontent: At nine."),
        ('{"title": "Gate", "question": "When?"}', "title: Gate\nquestion: When?"),
        ('{"subject": "%s", "body": "Closes."}' % ("long " * 60), f"subject: {'long ' * 60}\nCloses."),
    ],
)  # fmt: skip
def test_no_field_of_a_record_is_dropped(record: str, text: str) -> None:
    assert json_values(record.encode(), ReadConfig()).text == text
    assert json_lines(record.encode(), ReadConfig()).text == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('{"price": 12.50, "id": 12345678901234567890123, "far": 1e400}',
         "price: 12.50\nid: 12345678901234567890123\nfar: 1e400"),
        ('{"a": NaN, "b": -Infinity}', "a: NaN\nb: -Infinity"),
        ('{"flat": "3b", "flat": "4a"}', "flat: 3b, 4a"),
        ('// rents\n{"flat": "3b", /* cold */ "url": "http://x//y", "rents": [700, 900,],}',
         "flat: 3b\nurl: http://x//y\nrents: 700, 900"),
        ('{"note": "one\ttwo\nthree"}', "note: one\ttwo\nthree"),
        ('{"title": 7, "text": "Closes."}', "Closes.\ntitle: 7"),
        ('{"a": 1}\n{"a": 2}\n', "a: 1\n\na: 2"),
        ('{\n "a": 1\n}\n{\n "a": 2\n}\n', "a: 1\n\na: 2"),
        ('\x1e{"a": 1}\n\x1e{"a": 2}\n', "a: 1\n\na: 2"),
    ],
)  # fmt: skip
def test_json_as_people_and_programs_write_it(source: str, text: str) -> None:
    assert json_values(source.encode(), ReadConfig()).text == text


@pytest.mark.parametrize(
    "source",
    [
        b'{"a": 1}\r{"a": 2}\r', b'\xef\xbb\xbf{"a": 1}\n\xef\xbb\xbf{"a": 2}',
        b'\x1e{"a": 1}\n\x1e{"a": 2}\n', b'[{"a": 1}, {"a": 2}]',
        b'{\n "a": 1\n}\n{\n "a": 2\n}\n', b'{"a": 1}\n\0\0\0\n{"a": 2}\0',
    ],
)  # fmt: skip
def test_lines_of_json(source: bytes) -> None:
    assert json_lines(source, ReadConfig()).text == "a: 1\n\na: 2"


def test_a_title_is_the_heading_of_its_text() -> None:
    parsed = json_lines(
        b'{"title": "Gate", "text": "Closes at nine."}\n{"title": "Ferry", "text": "Leaves."}', ReadConfig()
    )
    assert [(parsed.text[at : at + 5], title) for at, _, title in parsed.headings] == [
        ("Gate\n", "Gate"),
        ("Ferry", "Ferry"),
    ]
