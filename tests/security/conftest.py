"""Attacks on a reader: whoever sent the library, the adapter, the documents or the working folder is not trusted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "library"))

from forgery import STATE
from library_support import DIM, FINGERPRINT, fill

from sac_rag.library.library import Library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A library of STATE, closed."""
    path = tmp_path / "library"
    with Library.create(path, FINGERPRINT, dim=DIM) as library:
        fill(library, STATE)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the reader that must stay as it is."""
    path = tmp_path / "victim"
    path.write_text("keep me")
    return path
