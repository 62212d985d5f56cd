"""Bytes that are not UTF-8, or not only: declared, detected, replaced; and where characters stand in the file."""

# ruff: noqa: RUF001
from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sac_rag.config import ReadConfig
from sac_rag.errors import ConfigError, DocumentError
from sac_rag.text.cleaning import clean, composed, moved, shifts_of
from sac_rag.text.encodings import decode
from sac_rag.text.hyphens import joined
from sac_rag.text.passages import split
from sac_rag.text.readers import read

LONG = {
    "windows-1250": "Zażółć gęślą jaźń. Wszyscy ludzie rodzą się wolni i równi pod względem swej godności.",
    "iso-8859-2": "Příliš žluťoučký kůň úpěl ďábelské ódy. Všichni lidé se rodí svobodní a rovní.",
    "windows-1254": "İnsanlar özgür doğar, onur ve haklar bakımından eşittirler. Şubat ayı soğuk geçti.",
    "windows-1251": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "koi8-r": "Они наделены разумом и совестью и должны поступать в духе братства.",
    "cp866": "Каждый человек должен обладать всеми правами и всеми свободами.",
    "windows-1253": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια.",
    "windows-1255": "כל בני אדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "windows-1256": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "cp932": "会議室の予約は前日までにお願いします。すべての人間は自由である。",
    "euc-jp": "図書館は九時に開き、六時に閉まります。入口は北側にあります。",
    "gb18030": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。",
    "big5": "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心。",
    "cp949": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "cp874": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์",
    "utf-16-le": "The ferry leaves from pier four.",
    "utf-16-be": "Все люди рождаются свободными.",
    "iso2022_jp": "会議室の予約",
}
SHORT = ["Straße nach Köln", "Où êtes-vous ?", "La niña comió jamón.", "“Yes”, she said – once.", "It’s 9 £ or 10 €"]


def told(data: bytes, **more: str) -> tuple[str, list[str]]:
    notices: list[str] = []
    return decode(data, tell=notices.append, **more), notices


@pytest.mark.parametrize("encoding", LONG)
def test_encodings_are_recognised(encoding: str) -> None:
    text, notices = told(LONG[encoding].encode(encoding))
    assert text == LONG[encoding]
    assert [n.startswith("not utf-8, read as ") for n in notices] in ([True], [])


@pytest.mark.parametrize("text", SHORT)
def test_a_few_western_letters_are_windows_1252(text: str) -> None:
    assert told(text.encode("windows-1252")) == (text, ["not utf-8, read as windows-1252"])
    log = "nothing here\n" * 30_000 + text
    assert told(log.encode("windows-1252"))[0] == log


@pytest.mark.parametrize(
    ("source", "encoding"),
    [
        ("#!/usr/bin/python\n# vim: set fileencoding=iso-8859-2 :\n# žluť", "iso-8859-2"),
        ("# -*- coding: koi8-r -*-\n# ёлка", "koi8-r"),
        ("; -*- mode: lisp; coding: euc-jp -*-\n予約", "euc-jp"),
        ('@charset "windows-1251";\n/* ёлка */', "windows-1251"),
        ('<?xml version="1.0" encoding="windows-1253"?><a>ψυχή</a>', "windows-1253"),
        ("\\documentclass{article}\n\\usepackage[applemac]{inputenc}\nœuvre ƒ", "mac-roman"),
    ],
)
def test_what_a_file_declares_is_believed(source: str, encoding: str) -> None:
    assert told(source.encode(encoding)) == (source, [])


def test_a_false_declaration_does_not_spoil_utf8() -> None:
    source = "# coding: latin-1\n# Grüße, Café, naïve"
    assert told(source.encode()) == (source, [])


@pytest.mark.parametrize(
    ("data", "text", "notice"),
    [
        (b"caf\xc3\xa9 " * 20 + b"na\xefve", "café " * 20 + "na?ve", "1 byte is not valid utf-8 and replaced by ?"),
        ("Grüße ".encode() * 9 + b"\xff\xfe", "Grüße " * 9 + "??", "2 bytes are not valid utf-8 and replaced by ?"),
        ("日本".encode()[:-1] + b" end", "日? end", "1 byte is not valid utf-8 and replaced by ?"),
        (b"9 to 5 \xff daily", "9 to 5 ? daily", "1 byte is not valid utf-8 and replaced by ?"),
        ("ab\ufffdc é é ".encode() + b"\xff.", "ab\ufffdc é é ?.", "1 byte is not valid utf-8 and replaced by ?"),
        (b"\xff\xfe" + "gate".encode("utf-16-le") + b"\x20", "gate?", "1 byte is not valid utf-16 and replaced by ?"),
    ],
)
def test_single_bad_bytes_are_replaced_and_told(data: bytes, text: str, notice: str) -> None:
    assert told(data) == (text, [notice])


def test_the_user_says_the_encoding(tmp_path: Path) -> None:
    files = {"a.txt": "Æble", "b.csv": "name,x\nÆble,1\n", "c.html": "<p>Æble</p>", "d.jsonl": '{"name": "Æble"}'}
    for name, source in files.items():
        (tmp_path / name).write_bytes(source.encode("cp850"))
        document = read(tmp_path / name, config=ReadConfig(encoding="cp850"))
        assert "Æble" in document.text
        assert "notices" not in document.meta
    with pytest.raises(ConfigError, match="'zlib'"):
        ReadConfig(encoding="zlib")
    with pytest.raises(ConfigError, match="'utf-99'"):
        ReadConfig(encoding="utf-99")


def test_utf8_and_marks_come_before_what_the_user_says() -> None:
    assert told("Grüße, Café".encode(), encoding="cp850")[0] == "Grüße, Café"
    assert told("Grüße".encode("utf-8-sig"), encoding="cp850")[0] == "Grüße"
    assert told("Grüße".encode("utf-16"), encoding="cp850")[0] == "Grüße"


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)) * 40,
        bytes(range(4)) * 50,
        b"\x7fELF\x02\x01\x01" + bytes(60) + b"\xe8\xff",
        b"GIF89a\0\0\xff\xee",
    ],
)
def test_binary_data_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(DocumentError, match="binary data"):
        read(path)


# Places in the file


def test_unseen_signs_do_not_split_words() -> None:
    assert clean("reim\u00adburse\u200bment of the trea\u2060sur\ufeffer") == "reimbursement of the treasurer"
    assert clean("ສະ\u200bບາຍ\u200bດີ") == "ສະ\u200bບາຍ\u200bດີ"  # Lao parts its words so
    assert clean("👩\u200d🚒 می\u200cخواهم") == "👩\u200d🚒 می\u200cخواهم"


WORDS = [
    "Café",
    "müde",
    "Ångström",
    "한국",
    "naïve",
    "plain",
    "co\u00adop\u00aderate",
    "zero\u200bwidth",
    "भाषा",
    "שָׁלוֹם",
]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_places_are_those_of_the_file(tmp_path: Path, form: str, mark: str, newline: str) -> None:
    sentences = [f"{word} stands in sentence {n}, as exam-{newline}ple." for n, word in enumerate(WORDS * 3)]
    source = mark + unicodedata.normalize(form, newline.join(sentences))
    path = tmp_path / "a.txt"
    path.write_bytes(source.encode())
    whole = path.read_text("utf-8")  # as a user opens it: a mark is a character, a line end is one
    passages = split(read(path), lambda text: [(i, i + 1) for i in range(len(text))], max_tokens=90)
    assert len(passages) == 15
    for passage in passages:
        shown = whole[passage.start : passage.end]
        assert joined(clean(shown))[0] == passage.text
        assert passage.text == unicodedata.normalize("NFC", passage.text)
        assert "\u00ad" not in passage.text and "example" in passage.text


def test_files_that_were_clean_have_no_shifts(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# Grüße\n\nand a ready-made text\n")
    assert read(path).shifts == ()


SIGNS = st.lists(
    st.sampled_from(["a", "e\u0301", "\u00ad", "ü", "\u200b", "\ufeff", "日", "u\u0308", " ", "b-\nc", "\n"]),
    max_size=12,
).map("".join)


@given(SIGNS)
def test_shifts_lead_back_letter_by_letter(text: str) -> None:
    cleaned = clean(text)
    shifts = shifts_of(text, cleaned)
    places = [moved(i, shifts) for i in range(len(cleaned) + 1)]
    assert places == sorted(places)
    for i, letter in enumerate(cleaned):
        assert clean(text[places[i] : places[i + 1]]) == letter


@given(SIGNS)
def test_shifts_of_two_steps_are_one(text: str) -> None:
    cleaned = clean(text)
    first, (whole, second) = shifts_of(text, cleaned), joined(cleaned)
    both = composed(first, second)
    assert [moved(i, both) for i in range(len(whole) + 1)] == [
        moved(moved(i, second), first) for i in range(len(whole) + 1)
    ]


# Encodings that look like others


CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy."
GERMAN = "Die Straße führt über die Brücke. Größe: 5 °C, schön."
JAPANESE = "これは日本語の文章です。今日は天気がいいですね。"
CHINESE = "今天天气很好，我们去公园散步吧。中文测试文本。"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CZECH, "cp1250"), (CZECH, "iso-8859-2"), (GERMAN, "mac-roman"), (GERMAN, "cp850"), (GERMAN, "utf-32-le"),
        (GERMAN, "utf-32-be"), (JAPANESE, "utf-16-le"), (JAPANESE, "utf-16-be"), (CHINESE, "utf-16-le"),
        (CHINESE, "utf-16-be"), (JAPANESE, "shift_jis"), (CHINESE, "gb18030"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("times", [1, 20])
def test_words_are_of_one_script(text: str, encoding: str, times: int) -> None:
    assert told((f"{text}\n" * times).encode(encoding))[0] == f"{text}\n" * times


def test_markup_does_not_outweigh_the_text() -> None:
    data = b"<p>" + b"x" * 6000 + "<p>Привет мир, как дела".encode("cp1251")
    assert told(data)[0].endswith("<p>Привет мир, как дела")


@pytest.mark.parametrize("text", ["a\xa0b", "it costs 5 \u20ac", "caf\xe9 \xb2", "a\x85b"])
def test_a_few_signs_are_western(text: str) -> None:
    data = text.encode("latin-1") if "\x85" in text else text.encode("cp1252")
    assert told(data) == (text.replace("\x85", "…"), ["not utf-8, read as windows-1252"])


def test_ascii_with_nulls_is_not_chinese() -> None:
    assert told((b"plain words of a log\n" * 4 + b"\0\0") * 10)[0].startswith("plain words")


def test_halves_of_characters_in_utf8() -> None:
    assert told(b"x \xed\xa0\xbd\xed\xb8\x80 y caf\xc3\xa9") == ("x \U0001f600 y café", [])


# Words broken at the ends of lines


def test_soft_hyphens_and_blanks_at_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    source = "The docu\u00ad\nment of the automo- \n  bile, in docu\u00adments, Anna\u00ad\n Maria."
    path.write_text(source, encoding="utf-8")
    document = read(path)
    assert document.text == "The document of the automobile, in documents, Anna-\n Maria."
    for word in ("ment of", "bile,", "ments", "Maria"):
        assert source[moved(document.text.index(word), document.shifts) :].startswith(word)
