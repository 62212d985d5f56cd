"""Files of every kind, sound, damaged and hostile, and the folders they lie in."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sac_rag.config import ReadConfig
from sac_rag.errors import DocumentError
from sac_rag.records import Document
from sac_rag.text import isolation
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.extract import heading_paths
from sac_rag.text.isolation import ParserProcess
from sac_rag.text.readers import read
from sac_rag.text.walk import walk
from sac_rag.text.worker import read_frame, run_job


@pytest.fixture(scope="module")
def parser() -> Iterator[ParserProcess]:
    with ParserProcess() as process:
        yield process


@pytest.fixture
def put(tmp_path: Path):
    def put_file(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put_file


def titles(document: Document) -> list[tuple[str, str]]:
    """(what the text says at the offset, heading path) for each heading."""
    return [(document.text[at : at + 8], path) for at, path in document.headings]


def refusal(path: Path, parser: ParserProcess, **limits: int) -> str:
    with pytest.raises(DocumentError) as caught:
        read(path, parser=parser, config=ReadConfig(**limits) if limits else None)
    assert caught.value.path == path.as_posix()
    return caught.value.reason


def make_pdf(pages: list[str], outline: bool = True) -> bytes:
    from fpdf import FPDF

    pdf = FPDF()
    pdf.set_font("helvetica", size=12)
    pdf.set_title("Pump manual")
    for number, text in enumerate(pages):
        pdf.add_page()
        if outline:
            pdf.start_section(f"Part {number + 1}", level=min(number, 1))
        if text:
            pdf.multi_cell(0, 10, text)
    return bytes(pdf.output())


def make_docx() -> bytes:
    from docx import Document as Word

    word = Word()
    word.core_properties.title = "Pump manual"
    word.add_heading("Guide", 0)
    word.add_heading("Install", 2)
    word.add_paragraph("Turn the valve.")
    table = word.add_table(rows=2, cols=2)
    for cell, text in zip((c for row in table.rows for c in row.cells), ["part", "price", "valve", "3"], strict=True):
        cell.text = text
    word.add_paragraph("The end.")
    out = io.BytesIO()
    word.save(out)
    return out.getvalue()


def rezip(docx: bytes, **replaced: bytes) -> bytes:
    """The docx with word/<name>.xml replaced."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(docx)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            name = info.filename.removeprefix("word/").removesuffix(".xml")
            new.writestr(info.filename, replaced.get(name, old.read(info)))
    return out.getvalue()


# Formats whose text is the file's own


def test_markdown_keeps_the_file_and_finds_headings(put, parser) -> None:
    source = (
        "---\ntitle: front\n---\n# Guide\n\nHi *you*.\n\nInstall **now**\n-------\n\n```\n# no heading\n```\n"
        "### Linux `apt` ###\n> # quoted\n## Use\n#nospace\n"
    )
    document = read(put("a.md", source), parser=parser)
    assert document.text == source
    assert document.media_type == "text/markdown"
    assert titles(document) == [
        ("# Guide\n", "Guide"),
        ("Install ", "Guide > Install now"),
        ("### Linu", "Guide > Install now > Linux apt"),
        ("> # quot", "quoted"),
        ("## Use\n#", "quoted > Use"),
    ]


def test_large_markdown_is_outlined_too(put, parser) -> None:
    source = "# A\n\n" + "word " * 50_000 + "\n\n## B\n"
    assert titles(read(put("a.md", source), parser=parser)) == [("# A\n\nwor", "A"), ("## B\n", "A > B")]


def test_rst_keeps_the_file_and_finds_headings(put, parser) -> None:
    source = (
        "=====\nGuide\n=====\n\nHi.\n\nInstall\n-------\n\n.. include:: /etc/passwd\n\n.. unknown:: x\n\n"
        "Use ``it``\n----------\n\nDeep\n~~~~\n\nend\n"
    )
    document = read(put("a.rst", source), parser=parser)
    assert document.text == source
    assert titles(document) == [
        ("=====\nGu", "Guide"),
        ("Install\n", "Guide > Install"),
        ("Use ``it", "Guide > Use it"),
        ("Deep\n~~~", "Guide > Use it > Deep"),
    ]


def test_python_keeps_the_file_and_names_definitions(put, parser) -> None:
    source = "import x\n\n@deco\nclass A:\n    async def f(self): ...\n\ndef g():\n    def inner(): ...\n"
    document = read(put("a.py", source), parser=parser)
    assert document.text == source
    assert titles(document) == [("@deco\ncl", "class A"), ("    asyn", "class A > def f"), ("def g():", "def g")]


def test_broken_code_is_still_text(put, parser) -> None:
    hostile = "(" * 50_000
    assert read(put("a.py", "def f(:\n"), parser=parser).headings == ()
    assert read(put("b.py", hostile), parser=parser).text == hostile


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.rs", "a.ts", "a.yaml", "README", "Makefile", "a.xsd"])
def test_plain_text(put, parser, name: str) -> None:
    document = read(put(name, "Grüße,\nWelt\n"), parser=parser)
    assert document.text == "Grüße,\nWelt\n"
    assert document.uri.endswith(name)


def test_relative_uri_stays_relative(put, parser, monkeypatch) -> None:
    monkeypatch.chdir(put("d/a.txt", "x").parent.parent)
    assert read("./d/a.txt", parser=parser).uri == "d/a.txt"


# Formats that are extracted


def test_pdf(put, parser) -> None:
    document = read(put("a.pdf", make_pdf(["First page words.", "Second page words."])), parser=parser)
    first, second = document.meta["pages"]
    assert "First page words." in document.text[first:second]
    assert document.text[second:] == "Second page words."
    assert document.meta["title"] == "Pump manual"
    assert document.headings == ((first, "Part 1"), (second, "Part 1 > Part 2"))


def test_pdf_without_text_or_with_a_password(put, parser) -> None:
    from pypdf import PdfWriter

    def encrypted(user: str) -> bytes:
        writer = PdfWriter(clone_from=io.BytesIO(make_pdf(["secret words"])))
        writer.encrypt(user, "owner", algorithm="RC4-128")
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    assert refusal(put("blank.pdf", make_pdf([""], outline=False)), parser) == "no text"
    assert refusal(put("locked.pdf", encrypted("hunter2")), parser) == "encrypted pdf"
    assert read(put("open.pdf", encrypted("")), parser=parser).text == "secret words"


def test_docx(put, parser) -> None:
    document = read(put("a.docx", make_docx()), parser=parser)
    assert document.text == "Guide\n\nInstall\n\nTurn the valve.\n\npart | price\nvalve | 3\n\nThe end."
    assert document.headings == ((0, "Guide"), (7, "Guide > Install"))
    assert document.meta == {"title": "Pump manual"}


def test_docx_keeps_insertions_and_controls_and_drops_deletions(put, parser) -> None:
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    mc = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    body = (
        f"<w:document {w} {mc}><w:body><w:p><w:r><w:t>a</w:t></w:r><w:ins><w:r><w:t>b</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>c</w:delText></w:r></w:del><w:moveFrom><w:r><w:t>m</w:t></w:r></w:moveFrom>"
        "<w:r><w:tab/><w:t>d</w:t></w:r></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>e</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:r><mc:AlternateContent><mc:Choice><w:p><w:r><w:t>f</w:t></w:r></w:p></mc:Choice>"
        "<mc:Fallback><w:p><w:r><w:t>f</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent></w:r></w:p>"
        "</w:body></w:document>"
    )
    document = read(put("a.docx", rezip(make_docx(), document=body.encode())), parser=parser)
    assert document.text == "ab\td\n\ne\n\nf"


def test_docx_keeps_rows_and_cells_of_controls(put, parser) -> None:
    def cell(text: str) -> str:
        return f"<w:tc><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc>"

    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    control = "<w:sdt><w:sdtContent>{}</w:sdtContent></w:sdt>"
    rows = f"<w:tr>{control.format(cell('name'))}{cell('Ada')}</w:tr>"
    rows += control.format(f"<w:tr>{cell('age')}{cell('36')}</w:tr>")
    body = f"<w:document {w}><w:body><w:tbl>{rows}</w:tbl></w:body></w:document>"
    document = read(put("a.docx", rezip(make_docx(), document=body.encode())), parser=parser)
    assert document.text == "name | Ada\nage | 36"


def test_html(put, parser) -> None:
    source = (
        "<!doctype html><html><head><title>Pump\n manual</title><style>p{}</style><body><nav>menu</nav><h1>Gui<b>de</b>"
        "</h1><p>Turn the <i>va</i>lve,<br>then &amp; wait.<p>More.<ul><li>one<li>two</ul><script>evil()</script>"
        "<h2> In\nstall </h2><table><tr> <th>part</th> <th>price</th></tr><tr><td>valve<td>3</table>"
        "<pre>a\n  b</pre><!-- note --><h4></h4>end"
    )
    document = read(put("a.html", source), parser=parser)
    assert document.text == (
        "Guide\n\nTurn the valve,\nthen & wait.\n\nMore.\n\n- one\n- two\n\nIn stall\n\npart | price\nvalve | 3\n\n"
        "a\n  b\n\nend"
    )
    assert titles(document) == [("Guide\n\nT", "Guide"), ("In stall", "Guide > In stall")]
    assert document.meta == {"title": "Pump manual"}


def test_html_follows_its_declared_encoding(put, parser) -> None:
    page = '<meta charset="{}"><p>Grüße'
    assert read(put("a.html", page.format("iso-8859-1").encode("latin-1")), parser=parser).text == "Grüße"
    assert read(put("b.html", page.format("iso-8859-1").encode("utf-8")), parser=parser).text == "Grüße"
    for name, charset in {"c": "no-such", "d": "utf-8", "e": "zlib"}.items():
        document = read(put(f"{name}.html", page.format(charset).encode("latin-1")), parser=parser)
        assert (document.text, document.meta["notices"]) == ("Grüße", ["not utf-8, read as windows-1252"])


def test_ipynb(put, parser) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Guide\n", "text\n", "## Use"]},
        {"cell_type": "code", "metadata": {}, "source": "# comment\n1 + 1", "outputs": [], "execution_count": None},
    ]
    notebook = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})
    document = read(put("a.ipynb", notebook), parser=parser)
    assert document.text == "# Guide\ntext\n## Use\n\n# comment\n1 + 1"
    assert titles(document) == [("# Guide\n", "Guide"), ("## Use\n\n", "Guide > Use")]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", 'name,age\nBob,3\n"Eve, M.",\n,,x\n', "name: Bob\nage: 3\n\nname: Eve, M.\n\ncolumn 3: x"),
        ("b.csv", "name;price\nvalve;3,5\n", "name: valve\nprice: 3,5"),
        ("c.csv", 'only,"one ""row"""', 'column 1: only\ncolumn 2: one "row"'),
        ("d.csv", "t\n" + "x" * 200_000, "t: " + "x" * 200_000),
        ("a.tsv", "a\tb\n1,5\t2\n", "a: 1,5\nb: 2"),
        ("a.jsonl", '{"text": "Hi.\\nYou"}\n\n{"q": "?", "a": {"b": [1, true]}}', "Hi.\nYou\n\nq: ?\na.b: 1, true"),
        ("b.jsonl", '{"content": "c"}\n"p"\n{"text": 5}\n{"text": "a\u2028b"}', "c\n\np\n\ntext: 5\n\na\u2028b"),
        ("a.json", '[{"k": "v", "none": null}, {"text": "T"}]', "k: v\n\nT"),
        ("b.json", '{"a": {"b": [{"c": 1}, {"c": 2}]}, "d": "e"}', "a.b.0.c: 1\na.b.1.c: 2\nd: e"),
    ],
)  # fmt: skip
def test_records(put, parser, name: str, content: str, text: str) -> None:
    assert read(put(name, content), parser=parser).text == text


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(put, parser, encoding: str) -> None:
    assert read(put("a.txt", "Grüße 🙂".encode(encoding)), parser=parser).text == "Grüße 🙂"


def test_text_is_nfc_with_plain_newlines(put, parser) -> None:
    raw = "e\u0301\r\na\rb\0c\u0958"
    assert read(put("a.txt", raw), parser=parser).text == "é\na\nbc\u0915\u093c"
    assert (
        read(put("a.jsonl", json.dumps({"text": raw + "\ud800"})), parser=parser).text == "é\na\nbc\u0915\u093c\ufffd"
    )


@given(st.text())
def test_clean_is_idempotent_and_loses_nothing_but_nul(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert "\r" not in cleaned
    assert "\0" not in cleaned


def test_runs_of_combining_marks_are_refused_at_once() -> None:
    started = time.process_time()
    with pytest.raises(Refused, match="combining marks"):
        clean("a" + "\u0301\u0327" * 500_000)
    assert time.process_time() - started < 5
    assert clean("a" + "\u0301" * 20) == "á" + "\u0301" * 19


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "empty file"),
        ("a.pdf", b"", "empty file"),
        ("a.md", b" \n\t\n", "no text"),
        ("a.csv", b"\n\n", "no text"),
        ("a.json", b"[]", "no text"),
        ("a.html", b"<script>1</script>", "no text"),
        ("a.txt", b"\xff\xfea", "not valid utf-16"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xd8", "binary data"),
        ("a.py", bytes(1000), "binary data"),
        ("a.pdf", b"%PDF-1.7 nonsense", "damaged pdf"),
        ("a.docx", b"PK\x03\x04 nonsense", "damaged docx"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted or older word file"),
        ("a.ipynb", b"{}", "damaged ipynb"),
        ("a.json", b"{", "not valid json"),
        ("a.jsonl", b"{a}\n{", "2 of 2 lines left out, not valid json: 1-2"),
        ("a.jsonl", b"{a}\n", "not valid json"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"9" * 10_000, "not valid json"),
        ("a.xyz", b"text", "unknown file type"),
        ("noname", b"text", "unknown file type"),
    ],
)
def test_refusals(put, parser, name: str, content: bytes, reason: str) -> None:
    assert refusal(put(name, content), parser) == reason


def test_sizes(put, parser) -> None:
    assert refusal(put("a.txt", "x" * 101), parser, file_bytes=100) == "file over 100 bytes"
    assert len(read(put("b.txt", "x" * 100), parser=parser, config=ReadConfig(file_bytes=100)).text) == 100
    assert refusal(put("c.txt", "x" * 101), parser, text_chars=100) == "text over 100 characters"
    with ParserProcess(ReadConfig(text_chars=100)) as small:
        assert refusal(put("d.html", "<p>" + "x" * 101), small) == "text over 100 characters"
        assert len(read(put("e.html", "<p>" + "x" * 100), parser=small).text) == 100


def test_paths_that_are_no_files(tmp_path: Path, parser) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    assert refusal(tmp_path / "pipe.txt", parser) == "not a regular file"
    assert refusal(tmp_path / "loop.txt", parser) == "symlink loop"
    assert refusal(tmp_path / "gone.txt", parser) == "not found"
    assert refusal(tmp_path, parser) == "is a folder"
    with pytest.raises(DocumentError, match="name is not valid unicode"):
        read("a\0.txt", parser=parser)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(put, parser) -> None:
    path = put("a.txt", "x")
    path.chmod(0)
    assert refusal(path, parser) == "permission denied"


# Hostile files


def test_docx_bombs(put, parser) -> None:
    docx = make_docx()
    assert refusal(put("zip.docx", rezip(docx, styles=bytes(210_000_000))), parser) == "unzips to over 200000000 bytes"
    laughs = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    bomb = (
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>'
        '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        "<w:body><w:p><w:r><w:t>&a12;</w:t></w:r></w:p></w:body></w:document>"
    )
    assert refusal(put("laughs.docx", rezip(docx, document=bomb.encode())), parser) == "damaged docx"
    leak = bomb.replace('<!ENTITY a0 "ha">', '<!ENTITY a0 SYSTEM "file:///etc/passwd">').replace("&a12;", "&a0;")
    assert refusal(put("leak.docx", rezip(docx, document=leak.encode())), parser) == "declares xml entities"


def test_deeply_nested_html(put, parser) -> None:
    assert read(put("a.html", "<div>" * 5_000 + "core"), parser=parser).text == "core"


def test_pdf_whose_pages_contain_themselves(put, parser) -> None:
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"]
    pdf, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(pdf))
        pdf += f"{number} 0 obj{body}endobj\n".encode()
    xref = len(pdf)
    pdf += b"xref\n0 3\n0000000000 65535 f \n" + b"".join(f"{o:010} 00000 n \n".encode() for o in offsets)
    pdf += f"trailer<</Size 3/Root 1 0 R>>\nstartxref\n{xref}\n%%EOF".encode()
    assert refusal(put("a.pdf", pdf), parser) in ("nested too deeply", "damaged pdf", "no text")


@pytest.mark.parametrize(
    ("limits", "name", "reason"),
    [
        (ReadConfig(wall_s=5), "slow.html", "parsing took too long"),
        (ReadConfig(cpu_s=0), "slow.html", "parsing took too long"),
        (ReadConfig(memory_bytes=150_000_000), "big.json", "parsing needs too much memory"),
    ],
    ids=["wall", "cpu", "memory"],
)
def test_limits_end_one_file_not_the_run(put, limits: ReadConfig, name: str, reason: str) -> None:
    content = b"<p>a" * 1_500_000 if name == "slow.html" else b"[" + b"[]," * 2_000_000 + b"0]"
    if sys.platform == "darwin" and limits.wall_s > 5:
        pytest.skip("not enforced here")
    with ParserProcess(limits) as parser:
        assert refusal(put(name, content), parser) == reason
        assert read(put("b.json", '"fine"'), parser=parser).text == "fine"
        assert parser.started == 2


def test_a_child_broken_by_others_is_replaced(put) -> None:
    page = put("a.html", b"<p>fine" + b"<b>x</b>" * 200_000)
    with ParserProcess() as parser:
        text = read(page, parser=parser).text
        os.kill(parser._child.pid, signal.SIGKILL)  # between two files
        assert read(page, parser=parser).text == text
        assert parser.started == 2
        timer = threading.Timer(0.05, os.kill, (parser._child.pid, signal.SIGSEGV))  # within a file
        timer.start()
        assert read(page, parser=parser).text == text
        timer.join()
        assert parser.started == 3
        child = parser._child
    assert child.returncode is not None


@pytest.mark.parametrize(
    "reply",
    [
        '{"text": "x", "headings": [[1e999, 1, "t"]]}',
        '{"text": "x", "headings": [[0, Infinity, "t"]]}',
        '{"text": "x", "headings": [], "meta": {"title": NaN}}',
        '{"text": "\\ud800", "headings": []}',
        '{"text": "x", "headings": [[0, 1, "\\ud800"]]}',
        "[" * 5000,
    ],
)
def test_a_child_that_was_taken_over_costs_one_file(put, monkeypatch, reply: str) -> None:
    frame = json.dumps({"size": len(reply)}) + "\n" + reply
    start = f"import sys; sys.stdin.readline(); print({frame!r}, end='', flush=True); sys.stdin.read()"
    monkeypatch.setattr(isolation, "_START", start)
    with ParserProcess() as parser:
        assert refusal(put("a.html", "<p>x"), parser) == "parser crashed"


def test_no_frame_is_read_beyond_its_limit() -> None:
    for size in (-1, 11):
        stream = io.BytesIO(json.dumps({"size": size}).encode() + b"\n" + b"x" * 20)
        assert read_frame(stream, 10) is None
        assert len(stream.read()) == 20


def test_threads_share_a_child(put, parser) -> None:
    pages = [put(f"{i}.html", f"<p>page {i}") for i in range(24)]
    texts: dict[int, str] = {}

    def work(numbers: range) -> None:
        for i in numbers:
            texts[i] = read(pages[i], parser=parser).text

    threads = [threading.Thread(target=work, args=(range(t, 24, 4),)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {i: f"page {i}" for i in range(24)}


def test_imports_are_light() -> None:
    code = (
        "import sys, sac_rag.text.readers, sac_rag.text.passages, sac_rag.text.worker\n"
        "heavy = 'torch transformers numpy selectolax pypdfium2 chardet docutils lxml markdown_it sentencex pathspec'\n"
        "print([m for m in heavy.split() if m in sys.modules])"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout.strip() == "[]", done.stderr


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["txt", "md", "rst", "py", "html", "csv", "tsv", "json", "jsonl", "ipynb", "pdf", "docx"]),
    data=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")),
)
def test_any_bytes_are_a_document_or_a_reason(parser, suffix: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.{suffix}")
        path.write_bytes(data)
        try:
            document = read(path, parser=parser)
        except DocumentError as error:
            assert 0 < len(error.reason) <= 80
            assert error.reason[0].islower()
        else:
            assert document.text == clean(document.text)
            assert document.text.strip()
            offsets = [at for at, _ in document.headings]
            assert offsets == sorted(offsets)
            assert all(0 <= at < len(document.text) for at in offsets)


@pytest.mark.parametrize("kind", ["pdf", "docx"])
def test_mutated_files_never_hurt(put, parser, kind: str) -> None:
    sound = make_pdf(["One.", "Two."]) if kind == "pdf" else make_docx()
    for i in range(40):
        cut = len(sound) * (i + 1) // 41
        damaged = sound[:cut] if i % 2 else sound[:cut] + bytes([sound[cut] ^ 0xFF]) + sound[cut + 1 :]
        try:
            read(put(f"{i}.{kind}", damaged), parser=parser)
        except DocumentError as error:
            assert error.reason


# Folders


@pytest.fixture
def names(tmp_path: Path):
    """The names below tmp_path that walk yields, and {name: reason} of the others."""

    def run(*paths: str | Path) -> tuple[list[str], dict[str, str]]:
        skipped: dict[str, str] = {}

        def skip(path: str, reason: str) -> None:
            skipped[os.path.relpath(path, tmp_path)] = reason

        found = [p.relative_to(tmp_path).as_posix() for p in walk(paths or [tmp_path], on_skip=skip)]
        return found, skipped

    return run


def test_walk_sorts_and_passes_hidden_entries_over(put, names) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "C.txt", ".git/x.txt", ".hidden.txt", "a/.venv/y.txt"):
        put(name, "x")
    assert names() == (["C.txt", "a/b/c.txt", "a/z.txt", "b.txt"], {})


def test_walk_respects_gitignore_files(put, names, tmp_path: Path) -> None:
    for name in ("a.log", "keep.log", "build/x.txt", "src/build", "src/a.log", "src/b.tmp", "src/c.txt", "src/d/b.tmp"):
        put(name, "x")
    put(".gitignore", "*.log\n!keep.log\nbuild/\n# comment\n")
    put("src/.gitignore", "/b.tmp\n!a.log\n")
    assert names() == (["keep.log", "src/a.log", "src/build", "src/c.txt", "src/d/b.tmp"], {})
    # rules above count inside a repository, but not against what is asked for by name
    assert names(tmp_path / "src" / "d")[0] == ["src/d/b.tmp"]
    put("src/d/e.log", "x")
    assert names(tmp_path / "src" / "d")[0] == ["src/d/b.tmp", "src/d/e.log"]
    (tmp_path / ".git").mkdir()
    assert names(tmp_path / "src" / "d")[0] == ["src/d/b.tmp"]
    assert names(tmp_path / "build")[0] == ["build/x.txt"]
    assert names(tmp_path / "a.log")[0] == ["a.log"]


def test_walk_survives_hostile_gitignore_files(put, names, tmp_path: Path) -> None:
    put("a" * 200 + ".txt", "x")
    put(".gitignore", "*a" * 40 + "*b\n!\n[\n\\\n*.log\n")
    put("b.log", "x")
    put("sub/c.txt", "x")
    os.mkfifo(tmp_path / "sub" / ".gitignore")
    started = time.process_time()
    assert names()[0] == ["a" * 200 + ".txt", "sub/c.txt"]
    assert time.process_time() - started < 5


def test_walk_keeps_links_inside(put, names, tmp_path: Path, tmp_path_factory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("x")
    put("docs/a.txt", "x")
    put("docs/sub/b.txt", "x")
    links = {"in.txt": "sub/b.txt", "up": "..", "self": "self", "sub/here": ".", "other": "sub", "gone": "nothing"}
    links |= {"out.txt": str(outside / "secret.txt"), "outdir": str(outside), "twin": str(outside / ".." / "docs")}
    for name, target in links.items():
        (tmp_path / "docs" / name).symlink_to(target)
    found, skipped = names(tmp_path / "docs")
    assert found == ["docs/a.txt", "docs/in.txt", "docs/sub/b.txt"]
    assert skipped == {
        "docs/up": "symlink loop",
        "docs/self": "symlink loop",
        "docs/sub/here": "symlink loop",
        "docs/other": "symlink to a folder",
        "docs/gone": "broken symlink",
        "docs/out.txt": "symlink leaves the folder",
        "docs/outdir": "symlink to a folder",
        "docs/twin": "broken symlink",
    }
    assert names(tmp_path / "docs" / "out.txt")[0] == ["docs/out.txt"]


def test_a_link_does_not_lead_to_what_is_left_out(put, names, tmp_path: Path) -> None:
    put("docs/.git/config", "token = 1")
    put("docs/.env", "SECRET=1")
    put("docs/.gitignore", "private/\n*.key.txt\n")
    for name in ("private/a.txt", "b.key.txt", "sub/c.txt"):
        put(f"docs/{name}", "x")
    links = {"1.md": ".git/config", "2.md": ".env", "3.md": "private/a.txt", "4.md": "b.key.txt", "5.txt": "sub/c.txt"}
    for name, target in links.items():
        (tmp_path / "docs" / name).symlink_to(target)
    found, skipped = names(tmp_path / "docs")
    assert found == ["docs/5.txt", "docs/sub/c.txt"]
    assert skipped == {f"docs/{i}.md": "symlink to a hidden or ignored file" for i in range(1, 5)}


def test_walk_reports_what_does_not_exist(tmp_path: Path, names) -> None:
    (tmp_path / "gone").symlink_to("nothing")
    found, skipped = names(tmp_path / "no.txt", tmp_path / "gone", tmp_path / "*.md", "a\0b")
    assert found == []
    assert [*skipped.values()] == ["not found", "broken symlink", "no file matches", "not found"]


def test_walk_patterns(put, names, tmp_path: Path, monkeypatch) -> None:
    for name in ("a.md", "b.txt", "d/c.md", "d/e/f.md", "d/e/g.txt", "d/.h/i.md", "x.log"):
        put(name, "x")
    put(".gitignore", "*.log\n")
    assert names(tmp_path / "*.md")[0] == ["a.md"]
    assert names(tmp_path / "**/*.md")[0] == ["a.md", "d/c.md", "d/e/f.md"]
    assert names(tmp_path / "d/*")[0] == ["d/c.md", "d/e/f.md", "d/e/g.txt"]
    assert names(tmp_path / "*/e/?.[mt]*")[0] == ["d/e/f.md", "d/e/g.txt"]
    assert names(tmp_path / "*.log") == ([], {"*.log": "no file matches"})
    monkeypatch.chdir(tmp_path)
    assert [str(p) for p in walk(["*.md", "d/c.*"], on_skip=pytest.fail)] == ["a.md", "d/c.md"]


def test_walk_takes_brackets_in_real_names_literally(put, names, tmp_path: Path) -> None:
    put("[draft] a.txt", "x")
    assert names(tmp_path / "[draft] a.txt")[0] == ["[draft] a.txt"]


def test_walk_yields_each_file_once(put, names, tmp_path: Path) -> None:
    put("a.txt", "x")
    assert names(tmp_path, tmp_path / "a.txt", tmp_path / "*.txt")[0] == ["a.txt"]


def test_walk_goes_deeper_than_python_recurses(tmp_path: Path, names) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.txt").write_text("x")
        os.chdir(here)
        found, skipped = names()
        assert len(found) + len(skipped) == 1
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_walk_refuses_names_that_no_catalog_can_hold(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("x")
    skipped: list[tuple[str, str]] = []
    assert list(walk([tmp_path], on_skip=lambda *s: skipped.append(s))) == []
    assert [(Path(p).name.encode(), r) for p, r in skipped] == [(rb"caf\udce9.txt", "name is not valid unicode")]


@pytest.fixture
def tree(put, tmp_path: Path) -> Path:
    put("good/a.txt", "fine")
    put("good/b.md", "# fine")
    put("good/c.html", "<p>fine")
    put("good/d.jsonl", '{"text": "fine"}')
    put("bad/empty.txt", "")
    put("bad/latin.txt", b"caf\xe9")
    put("bad/bin.md", bytes(50))
    put("bad/x.pdf", b"%PDF-")
    put("bad/y.docx", b"PK")
    put("bad/z.unknown", "x")
    put("bad/deep.json", "[" * 50_000)
    os.mkfifo(tmp_path / "bad" / "pipe.txt")
    (tmp_path / "bad" / "loop").symlink_to("..")
    return tmp_path


def test_walk_tells_what_gitignore_excludes(put, tmp_path: Path) -> None:
    put("top/.git/config", "x")
    put("top/.gitignore", "*.pdf\nbuild/\n/top.md\n!keep.pdf\n")
    names = "a.md plan.pdf keep.pdf build/b.md build/deep/c.txt build/x.bin build/.h/d.md sub/e.pdf top.md x.o"
    for name in names.split():
        put(f"top/{name}", "x")
    top = tmp_path / "top"

    def walked(given: str | Path) -> tuple[list[str], dict[str, int]]:
        ignored: dict[str, int] = {}
        found = walk([given], on_skip=lambda *_: None, on_ignored=ignored.__setitem__)
        return [path.name for path in found], {os.path.relpath(p, top): n for p, n in ignored.items()}

    assert walked(top) == (["a.md", "keep.pdf", "x.o"], {"plan.pdf": 1, "top.md": 1, "build": 2, "sub/e.pdf": 1})
    assert walked(str(top / "*.pdf")) == (["keep.pdf"], {"plan.pdf": 1})
    assert walked(top / "build") == (["b.md", "c.txt", "x.bin"], {})


def test_gitignore_holds_behind_a_link_to_the_folder(put, tmp_path: Path) -> None:
    put("repo/.git/config", "x")
    put("repo/.gitignore", "docs/draft*\n")
    for name in ("draft.md", "final.md", "sub/draft.md"):
        put(f"repo/docs/{name}", "x")
    put("repo/docs/sub/.gitignore", "draft.md\n")
    (tmp_path / "link").symlink_to(tmp_path / "repo/docs")
    found = [path.relative_to(tmp_path).as_posix() for path in walk([tmp_path / "link"], on_skip=lambda *_: None)]
    assert found == ["link/final.md"]


def test_a_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    assert run_job("html", b"<p>x", ReadConfig(main_text=True)) == {
        "reason": "reading html needs a package: pip install trafilatura"
    }
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    assert run_job("workbook", b"x", ReadConfig())["reason"].endswith("pip install python-calamine")


def test_documents_and_skips_add_up_to_the_files(tree: Path) -> None:
    skipped: list[tuple[str, str]] = []
    documents = []
    with ParserProcess() as parser:
        for path in walk([tree], on_skip=lambda *s: skipped.append(s)):
            try:
                documents.append(read(path, parser=parser))
            except DocumentError as error:
                skipped.append((error.path, error.reason))
    entries = {e for folder, dirs, files in os.walk(tree) for e in (Path(folder, n).as_posix() for n in files + dirs)}
    files = {e for e in entries if not os.path.isdir(e) or os.path.islink(e)}
    assert {d.uri for d in documents} | {path for path, _ in skipped} == files
    assert len(documents) + len(skipped) == len(files)
    assert len(documents) == 5
    assert all(reason for _, reason in skipped)


def test_one_child_serves_a_run_and_ends_with_it(put, tmp_path: Path, monkeypatch) -> None:
    files = [put(f"{i}.html", f"<p>{i}") for i in range(3)]
    made: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def count(*args, **kwargs):
        made.append(popen(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", count)
    with ParserProcess() as parser:
        assert [read(f, parser=parser).text for f in files] == ["0", "1", "2"]
    assert len(made) == 1
    assert made[0].returncode is not None
    with ParserProcess() as parser:
        assert read(put("a.txt", "plain"), parser=parser).text == "plain"
    assert len(made) == 1, "plain text needs no child"


def test_heading_paths() -> None:
    headings = [(9, 2, "C"), (0, 2, "A"), (5, 1, "B"), (12, 40, "D"), (15, 50, "E")]
    assert heading_paths(headings) == ((0, "A"), (5, "B"), (9, "B > C"), (12, "B > C > D"), (15, "B > C > E"))
