"""Which files are read, and how. A new format is one row here and one function in a parser module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from sac_rag.registry import Registry


@dataclass(frozen=True)
class Format:
    """How one kind of file becomes a document. Without `parser` the decoded file is the text."""

    media_type: str
    parser: str | None = None
    """Name in PARSERS of `(bytes, ReadConfig) -> Parsed`; runs in the parser process."""
    outline: str | None = None
    """Name in PARSERS of `(text) -> [(offset, level, title)]` for files whose text is kept as it is."""
    wrapped: bool = False
    """Whether lines end by width, so that a hyphen at a line's end may only break a word."""


PARSERS = Registry(
    "parser",
    {
        "pdf": "sac_rag.text.pdf:pdf",
        "docx": "sac_rag.text.word:docx",
        "pptx": "sac_rag.text.slides:pptx",
        "epub": "sac_rag.text.books:epub",
        "opendocument": "sac_rag.text.books:opendocument",
        "eml": "sac_rag.text.mail:eml",
        "rtf": "sac_rag.text.rtf:rtf",
        "xml": "sac_rag.text.xml:xml",
        "html": "sac_rag.text.parsers:html",
        "ipynb": "sac_rag.text.parsers:ipynb",
        "csv": "sac_rag.text.tables:csv_rows",
        "tsv": "sac_rag.text.tables:tsv_rows",
        "workbook": "sac_rag.text.workbooks:sheets",
        "json": "sac_rag.text.values:json_values",
        "jsonl": "sac_rag.text.values:json_lines",
        "markdown": "sac_rag.text.outlines:markdown",
        "rst": "sac_rag.text.outlines:rst",
        "python": "sac_rag.text.outlines:python",
    },
)

_MARKDOWN = Format("text/markdown", outline="markdown")
_PLAIN = Format("text/plain")
_PROSE = Format("text/plain", wrapped=True)
_JSONL = Format("application/jsonl", parser="jsonl")
_OFFICE = "application/vnd.openxmlformats-officedocument"
_ARCHIVE = Format("multipart/related", parser="eml")
_HTML = Format("text/html", parser="html")

_FORMATS: dict[str, Format] = {
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".mdx": _MARKDOWN,
    ".rst": Format("text/x-rst", outline="rst"),
    ".html": _HTML,
    ".htm": _HTML,
    ".xhtml": _HTML,
    ".pdf": Format("application/pdf", parser="pdf"),
    ".docx": Format(f"{_OFFICE}.wordprocessingml.document", parser="docx"),
    ".dotx": Format(f"{_OFFICE}.wordprocessingml.template", parser="docx"),
    ".docm": Format("application/vnd.ms-word.document.macroenabled.12", parser="docx"),
    ".pptx": Format(f"{_OFFICE}.presentationml.presentation", parser="pptx"),
    ".ppsx": Format(f"{_OFFICE}.presentationml.slideshow", parser="pptx"),
    ".pptm": Format("application/vnd.ms-powerpoint.presentation.macroenabled.12", parser="pptx"),
    ".odt": Format("application/vnd.oasis.opendocument.text", parser="opendocument"),
    ".ott": Format("application/vnd.oasis.opendocument.text-template", parser="opendocument"),
    ".odp": Format("application/vnd.oasis.opendocument.presentation", parser="opendocument"),
    ".epub": Format("application/epub+zip", parser="epub"),
    ".rtf": Format("application/rtf", parser="rtf"),
    ".eml": Format("message/rfc822", parser="eml"),
    ".mbox": Format("application/mbox", parser="eml"),
    ".mht": _ARCHIVE,
    ".mhtml": _ARCHIVE,
    ".xml": Format("application/xml", parser="xml"),
    ".ipynb": Format("application/x-ipynb+json", parser="ipynb"),
    ".csv": Format("text/csv", parser="csv"),
    ".tsv": Format("text/tab-separated-values", parser="tsv"),
    ".xlsx": Format(f"{_OFFICE}.spreadsheetml.sheet", parser="workbook"),
    ".xlsm": Format("application/vnd.ms-excel.sheet.macroenabled.12", parser="workbook"),
    ".xlsb": Format("application/vnd.ms-excel.sheet.binary.macroenabled.12", parser="workbook"),
    ".xls": Format("application/vnd.ms-excel", parser="workbook"),
    ".ods": Format("application/vnd.oasis.opendocument.spreadsheet", parser="workbook"),
    ".json": Format("application/json", parser="json"),
    ".jsonl": _JSONL,
    ".ndjson": _JSONL,
    ".py": Format("text/x-code; language=python", outline="python"),
    ".pyi": Format("text/x-code; language=python", outline="python"),
    **dict.fromkeys((".txt", ".text"), _PROSE),
    **dict.fromkeys((".log", ".tex", ".bib", ".adoc", ".org", ".srt", ".vtt"), _PLAIN),
}

_CODE = {
    "asm": ".asm .s",
    "bash": ".sh .bash .zsh .fish",
    "batch": ".bat .cmd",
    "c": ".c .h",
    "clojure": ".clj .cljs .edn",
    "cmake": ".cmake",
    "cpp": ".cc .cpp .cxx .hh .hpp .hxx .cu .cuh",
    "csharp": ".cs",
    "css": ".css .scss .sass .less",
    "cython": ".pyx .pxd",
    "dart": ".dart",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "fortran": ".f .f90 .f95 .for",
    "fsharp": ".fs .fsx",
    "go": ".go",
    "graphql": ".graphql .gql",
    "groovy": ".groovy .gradle",
    "haskell": ".hs",
    "hcl": ".tf .hcl",
    "ini": ".ini .cfg .conf .properties",
    "java": ".java",
    "javascript": ".js .jsx .mjs .cjs",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "lisp": ".el .lisp .scm .rkt",
    "lua": ".lua",
    "make": ".mk",
    "nim": ".nim",
    "nix": ".nix",
    "objective-c": ".m .mm",
    "ocaml": ".ml .mli",
    "perl": ".pl .pm",
    "php": ".php",
    "powershell": ".ps1 .psm1",
    "protobuf": ".proto",
    "r": ".r .rmd",
    "ruby": ".rb",
    "rust": ".rs",
    "scala": ".scala .sc",
    "solidity": ".sol",
    "sql": ".sql",
    "svelte": ".svelte",
    "swift": ".swift",
    "thrift": ".thrift",
    "toml": ".toml",
    "typescript": ".ts .tsx .mts .cts",
    "verilog": ".v .sv .vhd .vhdl",
    "vim": ".vim",
    "vue": ".vue",
    "xml": ".xsd .xsl",
    "yaml": ".yaml .yml",
    "zig": ".zig",
}
for _language, _suffixes in _CODE.items():
    for _suffix in _suffixes.split():
        _FORMATS.setdefault(_suffix, Format(f"text/x-code; language={_language}"))

_TEXTS = "authors changelog changes contributing copying history install license news notice readme todo"
_NAMES = dict.fromkeys(_TEXTS.split(), _PROSE)
for _name in ("dockerfile", "gemfile", "jenkinsfile", "makefile", "rakefile"):
    _NAMES[_name] = Format(f"text/x-code; language={_name}")


def package_of(module: str | None) -> str:
    """The name by which pip installs a module that a parser imports."""
    return (module or "").partition(".")[0].replace("_", "-")


def format_of(path: PurePath) -> Format | None:
    """The format by suffix, or by whole name for files such as README and Makefile; None if unknown."""
    return _FORMATS.get(path.suffix.lower()) if path.suffix else _NAMES.get(path.name.lower())


def is_code(media_type: str) -> bool:
    """Whether lines, not sentences, are the units of this text."""
    return media_type.startswith("text/x-code")
