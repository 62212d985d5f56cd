"""Headings of files whose text stays as it is: what stands in front of them."""

from __future__ import annotations

import pytest

from sac_rag.text.outlines import markdown


@pytest.mark.parametrize(
    ("source", "titles"),
    [
        ("---\ntitle: x\n# a comment\ntags:\n  - a\n- b\n---\n# H\n", ["H"]),
        ("--- \ntitle: x\n---\t\n# H\n", ["H"]),
        ("---\ntitle: x\n...\n# H\n", ["H"]),
        ("+++\ntitle = 'x'\n# a comment\n[part]\nlist = [\n  1,\n]\n+++\n# H\n", ["H"]),
        ("---\ntitle: x\n---", []),
        # a rule, not the beginning of a block of settings
        ("---\n\n# A\n\ntext\n\n---\n\n# B\n", ["A", "B"]),
        ("---\n# A\nsome text of it\n\n---\n# B\n", ["A", "B"]),
        ("# A\n\n---\ntitle: x\n---\n", ["A", "title: x"]),
    ],
)
def test_front_matter(source: str, titles: list[str]) -> None:
    found = markdown(source)
    assert [title for *_, title in found] == titles
    assert all(source[at:].lstrip("# ").startswith(title) for at, _, title in found)
