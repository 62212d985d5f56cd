"""Helpers of this room's tests are importable whatever pytest's import mode is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from library_support import DIM, FINGERPRINT

from sac_rag.library.library import Library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "library"


@pytest.fixture
def library(folder: Path) -> Iterator[Library]:
    with Library.create(folder, FINGERPRINT, dim=DIM) as made:
        yield made
