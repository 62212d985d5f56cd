"""Files of questions, and a Full-FT adapter whose LoRA does something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteSet = Callable[..., str]


@pytest.fixture
def write_set(tmp_path: Path) -> WriteSet:
    """write_set("lamps", contexts=3, questions=2, repeat=1): a file of questions, its path."""

    def write(name: str, contexts: int = 3, questions: int = 2, repeat: int = 1) -> str:
        rows = []
        for i in range(contexts):
            text = (
                f"The lamp of house {i} in {name} burned oil until {1900 + i}, when the board paid for gas. " * repeat
            )
            qas = [
                {
                    "qid": f"{i}-{j}",
                    "question": f"Until when did lamp {i} burn{' oil' * j}?",
                    "answers": [f"{1900 + i}"],
                }
                for j in range(questions)
            ]
            rows.append({"context": text.strip(), "qas": qas})
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def tiny_full_ft(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Full-FT adapter for `tiny_base`, its LoRA scrambled."""
    import torch

    from sac_rag.compress import adapter
    from sac_rag.compress.layout import PromptLayout
    from sac_rag.models.loading import load_base
    from sac_rag.models.sources import fingerprint_of

    folder = tmp_path_factory.mktemp("adapters") / "tiny-full-ft"
    card = adapter.Card(
        base=str(tiny_base),
        base_fingerprint=fingerprint_of(tiny_base),
        method="full-ft",
        ratios=(1.0,),
        lora={"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]},
        layout=PromptLayout().to_mapping(),
    )
    method = adapter.build(*load_base(tiny_base, torch.device("cpu"), torch.float32), card)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in method.parameters().values():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    adapter.save(method, card, folder)
    return folder


@pytest.fixture
def tiny(tiny_base: Path, tiny_adapter: Path, tiny_full_ft: Path) -> dict[str, Any]:
    """Keywords of `evaluate` for the tiny models."""
    return {
        "model": str(tiny_base),
        "adapter": str(tiny_adapter),
        "full_ft_adapter": str(tiny_full_ft),
        "device": "cpu",
        "dtype": "float32",
    }
