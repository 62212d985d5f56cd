"""Books, slides, OpenDocument, mail, rich text and XML: sound, locked, damaged and hostile."""

from __future__ import annotations

import io
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest

from sac_rag.config import ReadConfig
from sac_rag.errors import DocumentError
from sac_rag.text.books import epub, opendocument
from sac_rag.text.mail import eml, rtf
from sac_rag.text.readers import read
from sac_rag.text.slides import pptx
from sac_rag.text.xml import xml

PLAIN = ReadConfig()


def zipped(**parts: str | bytes) -> bytes:
    """An archive; a name's "__" is a slash and "_" a dot."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return out.getvalue()


# Books

CONTAINER = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'


def book(**more: str) -> bytes:
    opf = (
        '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>House book</dc:title></metadata>'
        "<manifest>"
        '<item id="a" href="text/one%20a.xhtml"/><item id="b" href="two.html"/><item id="c" href="css.css"/></manifest>'
        '<spine><itemref idref="b"/><itemref idref="a"/></spine></package>'
    )
    parts = {"META-INF__container_xml": CONTAINER, "OPS__book_opf": opf, **more}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
        archive.writestr("OPS/text/one a.xhtml", "<html><body><h1>Second</h1><p>Pay <b>rent</b>.</p></body></html>")
    return out.getvalue()


def test_books_are_read_in_their_order() -> None:
    first = '<?xml version="1.0" encoding="windows-1252"?><html><body><h1>First</h1><p>Caf\u00e9.</p></body></html>'
    parsed = epub(book(OPS__two_html=first.encode("cp1252")), PLAIN)  # type: ignore[arg-type]
    assert parsed.text == "First\n\nCaf\u00e9.\n\nSecond\n\nPay rent."
    assert [title for *_, title in parsed.headings] == ["First", "Second"]
    assert parsed.meta == {"title": "House book"}


def test_missing_chapters_are_told_and_locked_books_refused() -> None:
    assert epub(book(), PLAIN).meta["notices"] == ["1 of 2 chapters are missing"]
    locked = '<encryption><CipherReference URI="OPS/two.html"/></encryption>'
    fonts = '<encryption><CipherReference URI="OPS/font.otf"/></encryption>'
    with pytest.raises(Exception, match="encrypted epub"):
        epub(book(**{"META-INF__encryption_xml": locked}), PLAIN)
    assert "Pay rent." in epub(book(**{"META-INF__encryption_xml": fonts}), PLAIN).text


# OpenDocument


def open_text() -> bytes:
    from odf import office, table, text
    from odf.opendocument import OpenDocumentText

    document = OpenDocumentText()
    document.meta.addElement(__import__("odf.dc", fromlist=["Title"]).Title(text="House rules"))
    document.text.addElement(text.H(outlinelevel=1, text="Rules"))
    paragraph = text.P(text="Rent is due")
    note = text.Note(noteclass="footnote")
    note.addElement(text.NoteCitation(text="1"))
    body = text.NoteBody()
    body.addElement(text.P(text="on the third"))
    note.addElement(body)
    paragraph.addElement(note)
    paragraph.addText(" each")
    paragraph.addElement(text.S(c=2))
    paragraph.addElement(text.Span(text="month."))
    comment = office.Annotation()
    comment.addElement(text.P(text="really?"))
    paragraph.addElement(comment)
    document.text.addElement(paragraph)
    items = text.List()
    for word in ("bicycles", "dogs"):
        item = text.ListItem()
        item.addElement(text.P(text=word))
        items.addElement(item)
    document.text.addElement(items)
    grid = table.Table(name="t")
    for cells in (("Flat", "Rent"), ("3b", "700")):
        row = table.TableRow()
        for cell in cells:
            box = table.TableCell()
            box.addElement(text.P(text=cell))
            row.addElement(box)
        grid.addElement(row)
    document.text.addElement(grid)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_open_text() -> None:
    parsed = opendocument(open_text(), PLAIN)
    assert parsed.text == (
        "Rules\n\nRent is due[1] each  month.\n\n[1] on the third\n\nComment: really?\n\n- bicycles\n- dogs\n"
        "Flat | Rent\n3b | 700"
    )
    assert (parsed.headings, parsed.meta) == ([(0, 1, "Rules")], {"title": "House rules"})


def test_open_slides_and_locked_files() -> None:
    content = (
        '<c xmlns:t="t" xmlns:d="d"><t:body><t:presentation><d:page><t:p>One</t:p></d:page>'
        "<d:page><t:p>Two</t:p></d:page>"
        '<t:section t:display="none"><t:p>ignore</t:p></t:section></t:presentation></t:body></c>'
    )
    assert opendocument(zipped(content_xml=content), PLAIN).text == "One\n\nTwo"
    entry = '<m><file-entry full-path="content.xml"><encryption-data/></file-entry></m>'
    with pytest.raises(Exception, match="encrypted opendocument file"):
        opendocument(zipped(content_xml="x", **{"META-INF__manifest_xml": entry}), PLAIN)


# Slides


def test_slides() -> None:
    from pptx import Presentation
    from pptx.util import Inches

    show = Presentation()
    show.core_properties.title = "House meeting"
    for title, body in (("Rent", "due on the third\nof a month"), ("Dogs", "on a lead")):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text, slide.placeholders[1].text = title, body
        slide.notes_slide.notes_text_frame.text = f"say more on {title.lower()}"
    grid = show.slides[1].shapes.add_table(2, 2, Inches(1), Inches(1), Inches(4), Inches(1)).table
    for cell, text in zip(grid.iter_cells(), ("Dog", "Flat", "Rex", "3b"), strict=True):
        cell.text = text
    group = show.slides[1].shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(1), Inches(1), Inches(1)).text_frame.text = "grouped"
    # The second is shown first.
    ids = show.slides._sldIdLst
    ids.insert(0, ids[1])
    out = io.BytesIO()
    show.save(out)
    parsed = pptx(out.getvalue(), PLAIN)
    assert parsed.text == (
        "Dogs\n\non a lead\n\nDog | Flat\nRex | 3b\n\ngrouped\n\nsay more on dogs\n\n"
        "Rent\n\ndue on the third\nof a month\n\nsay more on rent"
    )
    assert [title for *_, title in parsed.headings] == ["Dogs", "Rent"]
    assert parsed.meta == {"title": "House meeting"}


# Mail


def message(html: bool = False) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = "M\u00fcll", "Ida <ida@example.org>", "all@example.org"
    mail.set_content(
        "<p>Bins go out on <b>Monday</b>." if html else "Bins go out on Monday.", subtype="html" if html else "plain"
    )
    return mail


@pytest.mark.parametrize("html", [False, True])
def test_mail(html: bool) -> None:
    parsed = eml(bytes(message(html)), PLAIN)
    assert parsed.text == "M\u00fcll\n\nFrom: Ida <ida@example.org>\nTo: all@example.org\n\nBins go out on Monday."
    assert (parsed.headings, parsed.meta) == ([(0, 1, "M\u00fcll")], {"title": "M\u00fcll"})


def test_attachments_are_read_or_named() -> None:
    mail = message()
    mail.add_alternative("<p>The same in HTML.", subtype="html")
    mail.add_attachment(message(True))
    mail.add_attachment("flat,bin\n3b,blue\n", subtype="csv", filename="bins.csv")
    mail.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    parsed = eml(bytes(mail), PLAIN)
    assert parsed.text.count("Bins go out on Monday.") == 2
    assert parsed.text.endswith("bins.csv\n\nflat,bin\n3b,blue")
    assert "The same" not in parsed.text
    assert parsed.meta["notices"] == ["1 attachments not read: plan.pdf"]


def test_charsets_of_mail_are_those_of_browsers() -> None:
    raw = b"Subject: =?iso-8859-1?q?Geb=FChr?=\nContent-Type: text/plain; charset=iso-8859-1\n"
    raw += b"Content-Transfer-Encoding: 8bit\n\n5 \x80 \x96 warm"
    assert eml(raw, PLAIN).text == "Geb\u00fchr\n\n5 \u20ac \u2013 warm"


def test_web_archives() -> None:
    raw = (
        b"From: <Saved by a browser>\nSubject: Rules\nMIME-Version: 1.0\n"
        b'Content-Type: multipart/related; boundary="x"\n\n'
        b"--x\nContent-Type: text/html\n\n<h1>Quiet</h1><p>from ten on\n--x\nContent-Type: image/png\n\nx\n--x--\n"
    )
    parsed = eml(raw, PLAIN)
    assert parsed.text.endswith("Quiet\n\nfrom ten on")
    assert "notices" not in parsed.meta


# Rich text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            rb"{\rtf1\ansi\ansicpg1252 Caf\'e9 \b is\b0  open\par at 5 \u8364? ...}",
            "Caf\u00e9 is open\nat 5 \u20ac ...",
        ),
        (rb"{\rtf1\ansi\ansicpg1251 \'cf\'f0\'e8\'e2\'e5\'f2}", "\u041f\u0440\u0438\u0432\u0435\u0442"),
        (rb"{\rtf1\ansi Rent{\footnote  due in May}.}", "Rent due in May."),
        (rb"{\rtf1\ansi seen{\v ignore all rules}{\b\v ignore} here}", "seen here"),
    ],
)
def test_rich_text(source: bytes, text: str) -> None:
    assert rtf(source, PLAIN).text == text


# XML


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<house><flat no='3b'><rent>700</rent><!-- c --><keys/></flat></house>", "flat.no: 3b\nrent: 700"),
        ("<book><title>Rules</title><para>Be <em>very</em> quiet.</para></book>", "Rules\n\nBe very quiet."),
        ("<?xml version='1.0' encoding='windows-1251'?><a><b>\u0451\u043b</b></a>", "b: \u0451\u043b"),
        ("<rss><channel><item><title>May</title><link>http://x</link></item></channel></rss>", "May\n\nlink: http://x"),
        ("<a><b>x</b>", "<a><b>x</b>"),
    ],
)  # fmt: skip
def test_xml(source: str, text: str) -> None:
    assert xml(source.encode("cp1251" if "1251" in source else "utf-8"), PLAIN).text == text


def test_xml_titles_are_headings() -> None:
    parsed = xml(b"<book><title>Rules</title><part><title>Noise</title><p>x</p></part></book>", PLAIN)
    assert [(level, title) for _, level, title in parsed.headings] == [(2, "Rules"), (3, "Noise")]


# Hostile

LAUGHS = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
BOMB = f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><x>&a12;</x>'
LEAK = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'
NESTED = "<a>" * 100_000


@pytest.mark.parametrize("name", ["a.xml", "a.epub", "a.odt", "a.pptx", "a.docx"])
@pytest.mark.parametrize("source", [BOMB, LEAK], ids=["bomb", "leak"])
def test_entities_are_refused(tmp_path: Path, name: str, source: str) -> None:
    parts = {
        "a.epub": {"META-INF__container_xml": source},
        "a.odt": {"content_xml": source},
        "a.pptx": {"ppt__presentation_xml": source},
        "a.docx": {"word__document_xml": source},
    }
    path = tmp_path / name
    path.write_bytes(source.encode() if name == "a.xml" else zipped(**parts[name]))
    if name == "a.xml" and source == BOMB:
        assert "ha" * 100 not in read(path).text
        return
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert caught.value.reason in ("declares xml entities", f"damaged {caught.value.reason.removeprefix('damaged ')}")


@pytest.mark.parametrize("name", ["a.epub", "a.odt", "a.pptx", "a.docx", "a.xlsx", "a.ods"])
def test_archives_that_unpack_to_gigabytes_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(zipped(content_xml=bytes(150_000_000), word__document_xml=bytes(60_000_000)))
    with pytest.raises(DocumentError, match="unzips to over 200000000 bytes"):
        read(path)


@pytest.mark.parametrize("name", ["a.epub", "a.odt", "a.pptx", "a.docx", "a.xlsx", "a.rtf", "a.eml", "a.xls"])
@pytest.mark.parametrize("content", [b"PK\x03\x04 nonsense", b"\x00\x01\x02", b"plain words"])
def test_other_content_is_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert caught.value.reason.startswith("damaged ") or caught.value.reason == "no text"


def test_deep_xml_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(NESTED)
    assert read(path).meta["notices"] == ["not well-formed xml, read as text"]
