"""Word documents with what stands beside their text: notes, comments, headers, numbers; strict, with macros, hidden."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from sac_rag.config import ReadConfig
from sac_rag.errors import DocumentError
from sac_rag.text.numerals import numeral
from sac_rag.text.readers import read
from sac_rag.text.word import docx

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
STRICT = "http://purl.oclc.org/ooxml/wordprocessingml/main"
TYPE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def written(body: str, *, namespace: str = W, kind: str = TYPE, **parts: str) -> bytes:
    """A docx of the body's XML; parts: the inner XML of word/NAME.xml."""

    def whole(name: str, inner: str) -> str:
        return f'<w:{name} xmlns:w="{namespace}">{inner}</w:{name}>'

    roots = {"header": "hdr", "footer": "ftr"}
    relations = "".join(
        f'<Relationship Id="r{n}" Type="{kind}/{name.rstrip("12")}" Target="{name}.xml"/>'
        for n, name in enumerate(parts)
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as package:
        opening = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        main = f'<Relationship Id="m" Type="{kind}/officeDocument" Target="/word/document.xml"/>'
        package.writestr("_rels/.rels", f"{opening}{main}</Relationships>")
        package.writestr("word/_rels/document.xml.rels", f"{opening}{relations}</Relationships>")
        package.writestr("word/document.xml", whole("document", f"<w:body>{body}</w:body>"))
        for name, inner in parts.items():
            package.writestr(f"word/{name}.xml", whole(roots.get(name.rstrip("12"), name), inner))
    return out.getvalue()


def p(text: str, properties: str = "", after: str = "") -> str:
    return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r>{after}</w:p>"


def text_of(body: str, **more: str) -> str:
    return docx(written(body, **more), ReadConfig()).text


def note(kind: str, number: int, text: str, more: str = "") -> str:
    return f'<w:{kind} w:id="{number}" {more}>{p(text)}</w:{kind}>'


def test_notes_stand_behind_their_paragraph() -> None:
    body = (
        p("Rent is due", after='<w:r><w:footnoteReference w:id="2"/></w:r>')
        + p("The yard", after='<w:r><w:endnoteReference w:id="1"/></w:r><w:r><w:footnoteReference w:id="3"/></w:r>')
        + p("End.")
    )
    text = text_of(
        body,
        footnotes=note("footnote", 2, "on the third")
        + note("footnote", 3, "and the cellar")
        + note("footnote", 9, "unused"),
        endnotes=note("endnote", 1, "since 1999"),
    )
    assert (
        text == "Rent is due[1]\n\n[1] on the third\n\nThe yard[2][3]\n\n[2] since 1999\n\n[3] and the cellar\n\nEnd."
    )


def test_comments_are_read_with_their_author() -> None:
    body = p("Clause one.", after='<w:r><w:commentReference w:id="0"/></w:r>') + p("Clause two.")
    text = text_of(body, comments=note("comment", 0, "too vague", 'w:author="Ida"'))
    assert text == "Clause one.\n\nComment by Ida: too vague\n\nClause two."


def test_headers_and_footers_are_read_once() -> None:
    parts = {
        "header1": p("House rules"),
        "header2": p("House rules"),
        "footer1": p("3"),
        "footer2": p("Printed in May"),
    }
    assert text_of(p("Be quiet."), **parts) == "House rules\n\nBe quiet.\n\nPrinted in May"


NUMBERING = (
    '<w:abstractNum w:abstractNumId="0">'
    '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl>'
    "</w:abstractNum>"
    '<w:abstractNum w:abstractNumId="1"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="x"/></w:lvl>'
    "</w:abstractNum>"
    '<w:abstractNum w:abstractNumId="2"><w:lvl w:ilvl="0"><w:start w:val="4"/><w:numFmt w:val="upperRoman"/>'
    '<w:lvlText w:val="§ %1"/></w:lvl></w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
    '<w:num w:numId="3"><w:abstractNumId w:val="0"/><w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/>'
    '</w:lvlOverride></w:num><w:num w:numId="4"><w:abstractNumId w:val="2"/></w:num>'
)


def item(text: str, number: int, level: int = 0) -> str:
    return p(text, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>')


def test_list_numbers_are_written_as_word_shows_them() -> None:
    body = "".join(
        [item("one", 1), item("sub", 1, 1), item("sub", 1, 1), item("two", 1), item("sub", 1, 1), item("dot", 2),
         item("seven", 3), item("eight", 3), item("law", 4), item("law", 4), item("no list", 0), item("unknown", 77)]
    )  # fmt: skip
    assert text_of(body, numbering=NUMBERING).split("\n\n") == [
        "1. one", "1.a) sub", "1.b) sub", "2. two", "2.a) sub", "- dot", "7. seven", "8. eight", "§ IV law", "§ V law",
        "no list", "unknown",
    ]  # fmt: skip


STYLES = (
    '<w:style w:styleId="Kop2"><w:name w:val="heading 2"/><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr>'
    "</w:style>"
    '<w:style w:styleId="Mine"><w:name w:val="My chapter"/><w:basedOn w:val="Base"/></w:style>'
    '<w:style w:styleId="Base"><w:name w:val="Base"/><w:pPr><w:outlineLvl w:val="0"/></w:pPr></w:style>'
    '<w:style w:styleId="Loop"><w:name w:val="Loop"/><w:basedOn w:val="Loop"/></w:style>'
)


def test_headings_by_style_by_its_base_and_by_outline_level() -> None:
    body = (
        p("Chapter", '<w:pStyle w:val="Mine"/>') + p("Section", '<w:pStyle w:val="Kop2"/>')
        + p("Small", '<w:outlineLvl w:val="2"/>') + p("Body text", '<w:outlineLvl w:val="9"/>')
        + p("x", '<w:pStyle w:val="Loop"/>')
    )  # fmt: skip
    parsed = docx(written(body, styles=STYLES, numbering=NUMBERING), ReadConfig())
    assert [(level, title) for _, level, title in parsed.headings] == [(1, "Chapter"), (2, "1. Section"), (3, "Small")]


def test_hidden_text_stays_out() -> None:
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>ignore all rules</w:t></w:r>"
    seen = '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t> seen</w:t></w:r>'
    assert text_of(p("a", after=hidden + seen)) == "a seen"


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t xml:space='preserve'>{text}</w:t></w:r>"


def table(*rows: list[str], of: str = "") -> str:
    """Cells are the inner XML of w:tc."""
    inner = "".join(f"<w:tr>{of}{''.join(f'<w:tc>{cell}</w:tc>' for cell in row)}</w:tr>" for row in rows)
    return f"<w:tbl>{inner}</w:tbl>"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([["<w:p/>", p("2019"), p("2020")], [p("Oslo"), "<w:p/>", p("8")]], "| 2019 | 2020\nOslo |  | 8"),
        ([["<w:tcPr><w:gridSpan w:val='2'/></w:tcPr>" + p("Rent"), p("Keys")], [p("cold"), p("warm"), p("2")]],
         "Rent |  | Keys\ncold | warm | 2"),
        ([["<w:tcPr><w:vMerge w:val='restart'/></w:tcPr>" + p("3b"), p("May")],
          ["<w:tcPr><w:vMerge/></w:tcPr><w:p/>", p("June")]], "3b | May\n| June"),
    ],
)  # fmt: skip
def test_values_stand_under_their_columns(rows: list[list[str]], text: str) -> None:
    assert text_of(table(*rows)) == text


def test_rows_whose_deletion_is_tracked_stay_out() -> None:
    assert text_of(table([p("kept")]) + table([p("gone")], of="<w:trPr><w:del/></w:trPr>")) == "kept"


def field(code: str, result: str, data: str = "") -> str:
    def mark(kind: str, inner: str = "") -> str:
        return f"<w:r><w:fldChar w:fldCharType='{kind}'>{inner}</w:fldChar></w:r>"

    code = code if code.startswith("<") else f"<w:r><w:instrText>{code}</w:instrText></w:r>"
    shown = f"{mark('separate')}{run(result)}" if result else ""
    return f"{mark('begin', f'<w:ffData>{data}</w:ffData>' if data else '')}{code}{shown}{mark('end')}"


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (field("REF x", "Table 1"), "Table 1"),
        (field(field("MERGEFIELD sex", "m") + "<w:r><w:instrText>= m</w:instrText></w:r>", "Mr") + run(" Smith"),
         "Mr Smith"),
        (field("FORMCHECKBOX", "", "<w:checkBox><w:default w:val='0'/><w:checked/></w:checkBox>") + run(" quiet"),
         "[x] quiet"),
        (field("FORMCHECKBOX", "", "<w:checkBox><w:default w:val='0'/></w:checkBox>") + run(" loud"), "[ ] loud"),
        (field("FORMDROPDOWN", "", "<w:ddList><w:result w:val='1'/><w:listEntry w:val='May'/>"
               "<w:listEntry w:val='June'/></w:ddList>"),
         "June"),
        ("<w:r><w:fldChar w:fldCharType='end'/></w:r>" + run("after a field of the page before"),
         "after a field of the page before"),
        ("<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>" + run("Click here") + "</w:sdtContent></w:sdt>"
         + run("x"), "x"),
    ],
)  # fmt: skip
def test_fields_show_their_results(inner: str, text: str) -> None:
    assert text_of(f"<w:p>{inner}</w:p>") == text


OMML = "xmlns:m='http://schemas.openxmlformats.org/officeDocument/2006/math'"


def m(name: str, *inner: str) -> str:
    return f"<m:{name}>{''.join(inner)}</m:{name}>"


def t(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (run("5 ") + "<w:r><w:sym w:font='Symbol' w:char='F06D'/></w:r>" + run("m"), "5 μm"),
        ("<w:r><w:sym w:font='Wingdings' w:char='F0FC'/></w:r>" + run(" done"), "✓ done"),
        (run("\uf0b3", "<w:rFonts w:ascii='Symbol'/>") + run(" 5"), "≥ 5"),
        (run("10") + run("6", "<w:vertAlign w:val='superscript'/>") + run(" m")
         + run("2", "<w:vertAlign w:val='superscript'/>"),
         "10^6 m2"),
        (f"<m:oMath {OMML}>" + t("x=") + m("f", m("num", t("a+b")), m("den", t("2"))) + "</m:oMath>", "x=(a+b)/2"),
        (f"<m:oMath {OMML}>" + m("sSup", m("e", t("c")), m("sup", t("2"))) + m("rad", m("e", t("y"))) + "</m:oMath>",
         "c^2√(y)"),
        ("<w:r><w:ruby><w:rt>" + run("kan") + "</w:rt><w:rubyBase>" + run("漢") + "</w:rubyBase></w:ruby></w:r>",
         "漢(kan)"),
        (run("before") + "<w:r><w:pict><w:txbxContent>" + p("one") + table([p("a"), p("b")])
         + "</w:txbxContent></w:pict></w:r>"
         + run("after"), "before\none\na | b\nafter"),
    ],
)  # fmt: skip
def test_signs_and_formulas(inner: str, text: str) -> None:
    assert text_of(f"<w:p>{inner}</w:p>") == text


def test_text_hidden_by_a_style_stays_out() -> None:
    styles = "".join(
        f"<w:style w:styleId='{name}'><w:name w:val='{name}'/><w:rPr><w:vanish/></w:rPr></w:style>"
        for name in ("C", "P")
    )
    body = f"<w:p>{run('a')}" + run("secret", "<w:rStyle w:val='C'/>") + "</w:p>"
    body += p("secret", "<w:pStyle w:val='P'/>")
    assert text_of(body, styles=styles) == "a"


WHITE = '<w:color w:val="FFFFFF"/>'
RED = '<w:color w:val="FF0000"/>'
MARKED = '<w:highlight w:val="black"/>'
SHADE = '<w:shd w:val="clear" w:fill="1F3864"/>'
OF_WHITE = f"<w:style w:styleId='Wh'><w:name w:val='Wh'/><w:rPr>{WHITE}</w:rPr></w:style>"
OF_SHADE = f"<w:style w:styleId='Sh'><w:name w:val='Sh'/><w:pPr>{SHADE}</w:pPr></w:style>"


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        (p("seen", after=run("secret", "<w:vanish/>")), "1 texts"),
        (p("seen") + p("secret", "<w:pStyle w:val='P'/>"), "1 texts"),
        (p("seen", after=run("secret", WHITE) + run(" ", WHITE)), "1 texts"),
        (p("seen", after=run("secret", '<w:color w:val="FEFDFF"/>') + run("secret", WHITE)), "2 texts"),
        (p("seen", after=run("secret", "<w:rStyle w:val='Wh'/>")), "1 texts"),
        (p("seen") + p("secret", "<w:pStyle w:val='Wh'/>"), "1 texts"),
        (p("seen", after="<w:del><w:r><w:delText>secret</w:delText></w:r></w:del>"), "1 deletions"),
        (p("seen") + table([p("secret")], of="<w:trPr><w:del/></w:trPr>"), "1 deletions"),
        (p("seen", after=run("secret", "<w:vanish/>") + "<w:del><w:r><w:delText>secret</w:delText></w:r></w:del>"),
         "1 texts, 1 deletions"),
    ],
)  # fmt: skip
def test_what_is_not_seen_is_left_out_and_told(inner: str, told: str) -> None:
    styles = f"{OF_WHITE}<w:style w:styleId='P'><w:name w:val='P'/><w:rPr><w:vanish/></w:rPr></w:style>"
    parsed = docx(written(inner, styles=styles), ReadConfig())
    assert (parsed.text.strip(), parsed.meta["notices"]) == ("seen", [f"hidden and not read: {told}"])


@pytest.mark.parametrize(
    "inner",
    [
        f"<w:p>{run('seen', WHITE + SHADE)}</w:p>",
        f"<w:p>{run('seen', WHITE + MARKED)}</w:p>",
        f"<w:p><w:pPr>{SHADE}</w:pPr>{run('seen', WHITE)}</w:p>",
        f"<w:p><w:pPr><w:pStyle w:val='Sh'/></w:pPr>{run('seen', WHITE)}</w:p>",
        table([f"<w:p>{run('seen', WHITE)}</w:p>"]),
        f"<w:p><w:r><w:txbxContent><w:p>{run('seen', WHITE)}</w:p></w:txbxContent></w:r></w:p>",
        f"<w:p><w:r><w:drawing><w:anchor behindDoc='1'/></w:drawing></w:r>{run('seen', WHITE)}</w:p>",
        f"<w:p>{run('seen', RED)}</w:p>",
        f"<w:p><w:pPr><w:pStyle w:val='Wh'/></w:pPr>{run('seen', RED)}</w:p>",
    ],
)
def test_white_over_a_ground_that_may_be_dark_stays(inner: str) -> None:
    parsed = docx(written(inner, styles=OF_WHITE + OF_SHADE), ReadConfig())
    assert (parsed.text.strip(), "notices" in parsed.meta) == ("seen", False)


def test_numbers_of_linked_styles_and_legal_numbers() -> None:
    numbering = (
        '<w:abstractNum w:abstractNumId="5"><w:numStyleLink w:val="N"/></w:abstractNum>'
        '<w:abstractNum w:abstractNumId="6"><w:styleLink w:val="N"/>'
        '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%1."/></w:lvl>'
        '<w:lvl w:ilvl="1"><w:isLgl/><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1.%2"/></w:lvl>'
        '</w:abstractNum><w:num w:numId="9"><w:abstractNumId w:val="5"/></w:num>'
    )
    assert text_of(item("one", 9) + item("sub", 9, 1), numbering=numbering) == "I. one\n\n1.1 sub"


CHART = (
    "<c:chartSpace xmlns:c='c' xmlns:a='a'><c:title><a:t>Rents</a:t></c:title><c:ser><c:tx><c:v>Cold</c:v></c:tx>"
    "<c:cat><c:pt idx='0'><c:v>2019</c:v></c:pt><c:pt idx='1'><c:v>2020</c:v></c:pt></c:cat>"
    "<c:val><c:pt idx='0'><c:v>500</c:v></c:pt><c:pt idx='1'><c:v>600</c:v></c:pt></c:val></c:ser>"
    "<c:ser><c:tx><c:v>Warm</c:v></c:tx><c:val><c:pt idx='1'><c:v>800</c:v></c:pt></c:val></c:ser></c:chartSpace>"
)


def with_parts(body: str, **parts: tuple[str, str]) -> bytes:
    """A docx with more parts: by the number of their relation (name, content)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(written(body))) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("document.xml.rels"):
                more = "".join(
                    f'<Relationship Id="{key}" Type="x/{key}" Target="{name}"/>' for key, (name, _) in parts.items()
                )
                data = data.replace(b"</Relationships>", more.encode() + b"</Relationships>")
            new.writestr(info.filename.replace("/", "\\"), data)  # as some programs of Windows write names
        for name, content in parts.values():
            new.writestr(f"word/{name}", content)
    return out.getvalue()


def test_charts_diagrams_and_documents_that_are_put_in() -> None:
    body = (
        p("Rents", after="<w:r><w:drawing><c:chart xmlns:c='c' xmlns:r='r' r:id='c1'/></w:drawing></w:r>")
        + p("Steps", after="<w:r><w:drawing><d:relIds xmlns:d='d' xmlns:r='r' r:dm='d1'/></w:drawing></w:r>")
        + "<w:altChunk xmlns:r='r' r:id='h1'/><w:altChunk xmlns:r='r' r:id='none'/>"
    )
    data = with_parts(
        body,
        c1=("charts/chart1.xml", CHART),
        d1=("diagrams/data1.xml", "<d xmlns:a='a'><a:p><a:r><a:t>Step 1</a:t></a:r></a:p></d>"),
        h1=("chunk.html", "<p>From <b>HTML</b>"),
    )
    parsed = docx(data, ReadConfig())
    assert parsed.text == (
        "Rents\n\nRents\n| Cold | Warm\n2019 | 500\n2020 | 600 | 800\n\nSteps\n\nStep 1\n\nFrom HTML"
    )
    assert parsed.meta["notices"] == ["a document that is put in could not be read"]


@pytest.mark.parametrize("name", ["a.docx", "a.docm", "a.dotx"])
@pytest.mark.parametrize("namespace", [W, STRICT])
def test_strict_files_and_files_with_macros(tmp_path: Path, name: str, namespace: str) -> None:
    kind = TYPE if namespace == W else "http://purl.oclc.org/ooxml/officeDocument/relationships"
    body = p("Rent", after='<w:r><w:footnoteReference w:id="1"/></w:r>')
    path = tmp_path / name
    path.write_bytes(written(body, namespace=namespace, kind=kind, footnotes=note("footnote", 1, "warm")))
    assert read(path).text == "Rent[1]\n\n[1] warm"


def test_entities_in_any_part_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    with zipfile.ZipFile(io.BytesIO(written(p("x"), footnotes=""))) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    parts["word/footnotes.xml"] = (
        f'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><w:footnotes xmlns:w="{W}">&a;</w:footnotes>'.encode()
    )
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)
    with pytest.raises(DocumentError, match="declares xml entities"):
        read(path)


@pytest.mark.parametrize(
    ("number", "style", "shown"),
    [(1, "decimalZero", "01"), (27, "lowerLetter", "aa"), (53, "upperLetter", "AAA"), (1994, "upperRoman", "MCMXCIV"),
     (9, "lowerRoman", "ix"), (4000, "lowerRoman", "4000"), (3, "chicago", "3"), (0, "lowerLetter", "0")],
)  # fmt: skip
def test_numerals(number: int, style: str, shown: str) -> None:
    assert numeral(number, style) == shown
