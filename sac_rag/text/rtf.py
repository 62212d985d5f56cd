"""Rich text (RTF) to text: paragraphs, tables, notes, headers, in the code page of each font."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass

from sac_rag.config import ReadConfig
from sac_rag.text.cleaning import Refused, clean
from sac_rag.text.extract import Extract, Parsed, short_title
from sac_rag.text.rows import row_lines
from sac_rag.text.symbols import RAISED, sign, with_exponents

_TOKEN = re.compile(
    r"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\(\r\n|[^a-zA-Z])|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\"
)
_SIGNS = {
    "tab": "\t", "line": "\n", "softline": "\n", "emdash": "\u2014", "endash": "\u2013", "emspace": "\u2003",
    "enspace": "\u2002", "qmspace": "\u2005", "bullet": "\u2022", "lquote": "\u2018", "rquote": "\u2019",
    "ldblquote": "\u201c", "rdblquote": "\u201d",
    "~": "\u00a0", "_": "-", "{": "{", "}": "}", "\\": "\\", "\n": "\n", "\r": "\n", "\r\n": "\n",
}  # fmt: skip
_CHARSETS = {
    77: "mac-roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "big5", 161: "cp1253", 162: "cp1254",
    163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
    254: "cp437", 255: "cp850",
}  # fmt: skip
_SYMBOLS = 2
"""The charset of fonts that draw signs."""
_ALSO_CODE_PAGES = {"mac": "mac-roman", "pc": "cp437", "pca": "cp850"}
_SHOWN_STARRED = frozenset("shpinst shptxt annotation atnauthor do dptxbxtext".split())
"""Groups that a reader may pass over, and that hold text all the same."""
_UNSEEN = frozenset(
    "colortbl stylesheet info pict objdata objclass objname fldinst datafield filetbl revtbl rsidtbl listtable"
    " listoverridetable pgdsctbl nonshppict shprslt template bkmkstart bkmkend private xe tc rxe txe sp generator"
    " themedata colorschememapping latentstyles nonesttables nesttableprops pn ftnsep ftnsepc ftncn aftnsep aftnsepc"
    " aftncn author operator keywords subject comment doccomm company manager category hlinkbase".split()
)
_HEADERS = re.compile(r"(header|footer)[lrf]?")


def rtf(data: bytes, config: ReadConfig) -> Parsed:
    """Paragraphs and tables in order, footnotes in place, hidden and deleted text left out. Headings: outline levels.

    Comments stand behind the paragraph that they belong to, headers in front of all, footers behind.
    """
    if not data.lstrip().startswith(b"{\\rtf"):
        raise Refused("damaged rtf")
    try:  # no standard allows bytes beyond ASCII; those who write them write UTF-8, or the code page
        source = data.decode("utf-8")
    except UnicodeDecodeError:
        source = data.decode("latin-1")
    reader = _Reader(Extract(config.text_chars))
    reader.read(source)
    return reader.finish()


@dataclass
class _State:
    """What a group inherits and gives back."""

    to: str = ""
    """What its text is: "" for the text itself, "-" for nothing."""
    font: int = -1
    skip: int = 1
    """Characters behind a \\u that stand for it in old readers."""
    hidden: bool = False
    in_table: bool = False
    level: int = 0


class _Reader:
    def __init__(self, out: Extract) -> None:
        self.out = out
        self.state = _State()
        self.stack: list[_State] = []
        self.code_page = "cp1252"
        self.default_font = -1
        self.fonts: dict[int, tuple[int, str]] = {}
        """(charset, name) by number."""
        self.texts: dict[str, list[str]] = {"": []}
        """What was read of the paragraph, and of groups that stand beside the text."""
        self.cells: list[str] = []
        self.rows: list[list[str]] = []
        self.notes: list[str] = []
        self.around: dict[str, list[str]] = {"header": [], "footer": []}
        self.bytes = bytearray()
        self.passed_over = 0
        self.starred = False

    def read(self, source: str) -> None:
        has_lists = "\\listtext" in source
        at = 0
        while match := _TOKEN.match(source, at):
            at = match.end()
            word, number, code, symbol, brace, text = match.groups()
            if code is not None or text is not None:
                self._characters(bytes([int(code, 16)]) if code is not None else text)
                continue
            self._decoded()
            if brace:
                self.passed_over = 0
                self._group(opens=brace == "{")
            elif symbol == "*":
                self.starred = True
            elif symbol:
                if not self._is_passed_over():
                    self._put(_SIGNS.get(symbol, ""))
            elif word == "bin":
                at += max(0, int(number or 0))
            elif word == "pntext" and has_lists:
                self.state.to = "-"
            elif word:
                self._word(word, int(number) if number else None)
        self._decoded()
        self._paragraph()

    def finish(self) -> Parsed:
        self._table()
        body, headers = self.out, Extract(self.out.max_chars)
        for text in dict.fromkeys(self.around["header"]):
            headers.add(text, blank=True)
        for text in dict.fromkeys(self.around["footer"]):
            body.add(text, blank=True)
        title = short_title(clean("".join(self.texts.get("title", []))))
        front, parsed = headers.finish().text, body.finish(title=title)
        if front:
            offset = len(front) + 2
            parsed.text = f"{front}\n\n{parsed.text}"
            parsed.headings = [(at + offset, level, name) for at, level, name in parsed.headings]
        return parsed

    def _group(self, *, opens: bool) -> None:
        self.starred = False
        if opens:
            self.stack.append(copy(self.state))
            return
        if not self.stack:
            return
        ended, self.state = self.state.to, self.stack.pop()
        if ended == self.state.to:
            return
        if ended == "annotation":
            author = "".join(self.texts.pop("atnauthor", [])).strip()
            text = " ".join("".join(self.texts.pop("annotation", [])).split())
            self.notes.append(f"Comment by {author}: {text}" if author else f"Comment: {text}")
        elif ended in self.around:
            text = "".join(self.texts.pop(ended, [])).strip()
            if re.search(r"[^\W\d_]", text):
                self.around[ended].append(text)
        elif ended == "shptxt":
            self._put(f"\n{''.join(self.texts.pop('shptxt', [])).strip()}\n")

    def _word(self, word: str, number: int | None) -> None:
        state, starred = self.state, self.starred
        self.starred = False
        on = number != 0
        match word:
            case "u" if number is not None:
                if self._is_passed_over():
                    return
                self._put(chr(number & 0xFFFF))
                self.passed_over = state.skip
            case "uc":
                state.skip = max(0, number or 0)
            case "ansicpg":
                self.code_page = {65001: "utf-8", 10000: "mac-roman"}.get(number or 0, f"cp{number}")
            case "mac" | "pc" | "pca":
                self.code_page = _ALSO_CODE_PAGES[word]
            case "deff":
                self.default_font = state.font = -1 if number is None else number
            case "f":
                state.font = -1 if number is None else number
            case "fcharset" if state.to == "fonttbl":
                self.fonts[state.font] = (number or 0, "")
            case "plain":
                state.font, state.hidden = self.default_font, False
            case "pard":
                state.in_table, state.level = False, 0
            case "intbl":
                state.in_table = True
            case "outlinelevel":
                state.level = number + 1 if number is not None and 0 <= number < 9 else 0
            case "v" | "deleted":
                state.hidden = on
            case "super" if on:
                self._put(RAISED)
            case "cell" | "nestcell" if not state.to:
                self.cells.append(" ".join(self._taken().split()))
            case "row" | "nestrow" if not state.to:
                self.rows.append(self.cells)
                self.cells = []
            case "par" | "sect" | "page":
                self._line_end(word)
            case _ if word in _SIGNS:
                if not self._is_passed_over():
                    self._put(_SIGNS[word])
            case "fonttbl":
                state.to = "fonttbl"
            case "title" if state.to == "-":  # within the group "info"
                state.to = "title"
            case "shptxt" | "dptxbxtext" if state.to != "-":
                state.to = "shptxt"
            case "annotation" | "atnauthor" if state.to != "-":
                state.to = word
            case _ if match := _HEADERS.fullmatch(word):
                state.to = match[1]
            case _ if word in _UNSEEN or (starred and word not in _SHOWN_STARRED):
                state.to = "-"

    def _line_end(self, word: str) -> None:
        if self.state.to:
            self._put("\n")
        elif self.state.in_table:
            self._put(" ")
        else:
            self._paragraph()
            if word != "par":
                self.out.gap()

    def _characters(self, more: bytes | str) -> None:
        if isinstance(more, bytes):
            if not self._is_passed_over():
                self.bytes += more
            return
        passed = min(self.passed_over, len(more))
        self.passed_over -= passed
        more = more[passed:]
        if self.bytes and more and self._is_incomplete():  # the second half of a character may be a letter
            self.bytes += more[0].encode("latin-1", "replace")
            more = more[1:]
        self._decoded()
        if self.state.to == "fonttbl" and (name := more.strip(" ;")):
            charset, known = self.fonts.get(self.state.font, (0, ""))
            self.fonts[self.state.font] = (charset, known or name)
        if more.isascii() or any(c > "\xff" for c in more):
            self._put(more)
        else:
            self.bytes += more.encode("latin-1")

    def _is_passed_over(self) -> bool:
        if self.passed_over:
            self.passed_over -= 1
            return True
        return False

    def _codec(self) -> str:
        charset, _ = self.fonts.get(self.state.font, (1, ""))
        return _CHARSETS.get(charset, self.code_page)

    def _is_incomplete(self) -> bool:
        try:
            self.bytes.decode(self._codec())
        except UnicodeDecodeError as error:
            return error.end == len(self.bytes)
        except LookupError:
            return False
        return False

    def _decoded(self) -> None:
        """Put down the bytes that were collected."""
        if not self.bytes:
            return
        charset, name = self.fonts.get(self.state.font, (1, ""))
        if charset == _SYMBOLS:
            text = "".join(sign(name, code) for code in self.bytes)
        else:
            try:
                text = self.bytes.decode(self._codec(), "replace")
            except LookupError:
                text = self.bytes.decode("cp1252", "replace")
        self.bytes.clear()
        self._put(text)

    def _put(self, text: str) -> None:
        if not text or self.state.to in ("-", "fonttbl"):
            return
        if not self.state.hidden:
            self.texts.setdefault(self.state.to, []).append(text)
        elif text.strip():
            self.out.hidden["texts"] += 1

    def _taken(self) -> str:
        """The text that was read since the last end of a paragraph or a cell."""
        text = "".join(self.texts[""])
        self.texts[""] = []
        # Characters beyond U+FFFF are written as two halves.
        return with_exponents(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _paragraph(self) -> None:
        text = self._taken()
        if text.strip() or self.notes:
            self._table()
        if self.state.level and text.strip():
            self.out.heading(self.state.level, text)
        elif text.strip():
            self.out.add(text)
        elif not self.rows:
            self.out.gap()
        for note in self.notes:
            self.out.add(note, blank=True)
        if self.notes:
            self.out.gap()
        self.notes = []

    def _table(self) -> None:
        if self.cells:  # of a row that was cut off
            self.rows.append(self.cells)
            self.cells = []
        for line in row_lines(self.rows):
            self.out.add(line)
        self.rows = []
