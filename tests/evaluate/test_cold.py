"""Times of whole processes: what is counted, and whose imports are whose."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sac_rag import SacRag
from sac_rag.errors import SacError
from sac_rag.evaluate import cold

TOLD = """
import time: self [us] | cumulative | imported package
import time:       100 |        100 |     sympy
import time:       300 |        400 |   torch._inner
import time:      5000 |       5400 | torch
import time:        40 |         40 |     json
import time:       700 |        740 |   sac_rag.library
import time:        50 |         50 |     numpy
import time:      1000 |       1790 | sac_cli.main
import time:        60 |         60 | warnings
a line of another kind
"""


def test_imports_count_for_the_package_that_asked_for_them() -> None:
    found = cold.imports(TOLD.splitlines())
    assert found == pytest.approx({"torch": 5.4e-3, "sac_rag": 1.7e-3, "numpy": 5e-5, "other": 1e-4})


@pytest.mark.slow
@pytest.mark.minutes
def test_whole_processes_are_timed(tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAC_CONFIG", str(tmp_path / "none.toml"))
    for name, value in {"SAC_MAX_NEW_TOKENS": "2", "SAC_DTYPE": "auto"}.items():
        monkeypatch.setenv(name, value)
    library = os.path.realpath(tmp_path / "a.lib")
    (tmp_path / "oak.txt").write_text("The oak was planted by Ada Quill in the harbour garden. " * 6)
    with SacRag.index(tmp_path / "oak.txt", library, tiny_config):
        pass
    with tempfile.TemporaryDirectory(prefix="sac-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        rows = cold.processes(library, "Who planted the oak?", 1)
    assert [row["process"] for row in rows] == ["ask, cold", "ask, warm", "info", "ls", "rm"]
    for row in rows:
        assert 0 < float(row["least"]) <= float(row["seconds"]) <= float(row["most"])
        assert float(row["of_it_the_answer"]) < float(row["seconds"])
    parts = {str(row["part"]): float(row["seconds"]) for row in cold.seconds(library, "Who planted the oak?")}
    whole = parts.pop("whole process")
    assert sum(parts.values()) == pytest.approx(whole)
    assert parts["import torch"] > 0 and "import transformers" not in parts


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SacError, match=r"none\.lib"):
        cold.process(["ls", "--library", str(tmp_path / "none.lib")])
