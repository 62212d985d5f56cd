"""Headings of files whose text stays as it is. Each function takes clean text and returns offsets into it."""

from __future__ import annotations

import ast
import re
from itertools import accumulate, pairwise

from sac_rag.text.cleaning import Refused
from sac_rag.text.extract import Heading, short_title

_FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.(?=\s))[ \t]*(?:\n|\Z)", re.DOTALL)
_YAML_LINE = re.compile(r"\s*$|[ \t]|#|[\w\"'][^:\n]*:(?:\s|$)|- |-$|[\]})]|\? ")
_TOML_LINE = re.compile(r"\s*$|[ \t]|#|\[|[\w\"'][\w.\"' -]*=|[\]}\"'][\s\S]*$")


def markdown(text: str) -> list[Heading]:
    """ATX and setext headings of CommonMark; YAML front matter is passed over."""
    from markdown_it import MarkdownIt

    # Block rules alone find headings, in linear time; link references only matter to inline parsing.
    blocks = MarkdownIt("commonmark").disable(["inline", "reference"])
    inlines = MarkdownIt("commonmark")
    lines = _line_starts(text)
    skipped = _front_matter_lines(text)
    found: list[Heading] = []
    tokens = blocks.parse(text[lines[skipped] :] if skipped else text)
    for opening, content in pairwise(tokens):
        if opening.type != "heading_open" or opening.map is None:
            continue
        parsed = inlines.parseInline(short_title(content.content))[0].children or []
        plain = "".join(t.content if t.type != "softbreak" else " " for t in parsed if not t.type.startswith("html"))
        if title := short_title(plain):
            found.append((lines[opening.map[0] + skipped], int(opening.tag[1]), title))
    return found


def rst(text: str) -> list[Heading]:
    """Section titles of reStructuredText; file insertion, raw content and configuration files are off."""
    from docutils import nodes
    from docutils.core import publish_doctree

    settings = {
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "_disable_config": True,
        "doctitle_xform": False,
        "docinfo_xform": False,
        "report_level": 5,
        "halt_level": 5,
        "line_length_limit": len(text) + 1,
    }
    lines, starts = text.split("\n"), _line_starts(text)
    found: list[Heading] = []
    for section in publish_doctree(text, settings_overrides=settings).findall(nodes.section):
        title = section.next_node(nodes.title)
        if title is None or not (short := short_title(title.astext())):
            continue
        level, above = 1, section.parent
        while isinstance(above, nodes.section):
            level, above = level + 1, above.parent
        line = min((title.line or section.line or 1) - 1, len(lines) - 1)
        # docutils names the underline, or the title itself when it is overlined
        for near in (line, line - 1, line - 2):
            if near >= 0 and lines[near].strip() == title.rawsource.strip():
                rule = "".join(lines[near + 1 : near + 2]).strip()
                overlined = near > 0 and rule != "" and lines[near - 1].strip() == rule
                found.append((starts[near - 1 if overlined else near], level, short))
                break
    return found


def python(text: str) -> list[Heading]:
    """Classes and functions, methods below their class; a decorator belongs to what it decorates."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        raise Refused("not valid python") from None
    starts = _line_starts(text)
    found: list[Heading] = []
    todo: list[tuple[ast.AST, int]] = [(tree, 1)]
    while todo:
        node, level = todo.pop()
        for child in getattr(node, "body", []):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                line = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                kind = "class" if isinstance(child, ast.ClassDef) else "def"
                found.append((starts[line - 1], level, f"{kind} {child.name}"))
                if kind == "class":
                    todo.append((child, level + 1))
    return sorted(found)


def _line_starts(text: str) -> list[int]:
    """Offset of every line; the last entry is that of the empty line behind the end, so line numbers fit."""
    return [0, *accumulate(len(line) + 1 for line in text.split("\n"))]


def _front_matter_lines(text: str) -> int:
    """Lines of a block of YAML between two `---` lines, or of TOML between two `+++` lines, at the very start, else 0.

    A rule, which is written alike, stands before an empty line or before what is no `name: value`.
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return 0
    lines = match[2].split("\n")
    named = _YAML_LINE if match[1] == "---" else _TOML_LINE
    if not lines[0].strip() or not all(named.match(line) for line in lines):
        return 0
    return match[0].count("\n") + (not match[0].endswith("\n"))
