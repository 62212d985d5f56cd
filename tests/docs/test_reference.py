"""docs/reference/ is what the code says: generated, and complete."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

import sac_rag
from tests.docs.pages import ROOT

SCRIPT = ROOT / "scripts/reference.py"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_that_the_script_makes(reference: ModuleType) -> None:
    made = reference.pages()
    assert {path.name for path in reference.PAGES.iterdir()} == set(made)
    for name, text in made.items():
        assert (reference.PAGES / name).read_text("utf-8") == text, f"{name}: run `python {SCRIPT.relative_to(ROOT)}`"


def test_nothing_is_left_without_a_word(reference: ModuleType) -> None:
    """Every setting, flag and registered name says what it means."""
    for name, text in reference.pages().items():
        for row in re.findall(r"^\|(.+)\|$", text, re.M):
            cells = [part.strip() for part in re.split(r"(?<!\\)\|", row)]
            if name in ("settings.md", "commands.md"):
                assert cells[0] and cells[-1], f"{name}: {row}"
            if name == "names.md":
                assert all(cells[:2]), f"{name}: {row}"


def test_it_holds_every_public_name_and_no_address(reference: ModuleType) -> None:
    made = reference.pages()
    whole = "".join(made.values())
    for name in sac_rag.__all__:
        assert re.search(rf"^## {name}$|^\| `{name}` \|", whole, re.M), name
    assert not re.search(r" at 0x[0-9a-f]+|UNSET|/home/|[ \t]+$", whole, re.M)
