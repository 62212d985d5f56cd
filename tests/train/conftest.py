"""A data folder as the recipes expect it, in miniature."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

PROSE = (
    "The canal was opened in 1825 by Governor Clinton. Its 83 locks lift boats from the river to the lake, and farmers "
    "send wheat by barge. The price of freight fell from $100 to $10 a ton within 10 years. "
)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """lm/train-00, -01 and qa/squad.train, .dev: what the recipe `tiny` reads, and a set to score on."""
    folder = tmp_path / "data"
    for name in ("00", "01"):
        write(folder / f"lm/train-{name}.jsonl.gz", [{"text": PROSE * 8, "source": name} for _ in range(4)])
    for split in ("train", "dev"):
        rows = [
            {
                "context": f"Lamp {i} burned oil until {1900 + i}, when the board of Oslo paid for gas.",
                "qas": [{"qid": str(i), "question": f"Until when did lamp {i} burn oil?", "answers": [str(1900 + i)]}],
            }
            for i in range(8)
        ]
        write(folder / f"qa/squad.{split}.jsonl.gz", rows)
    return folder
