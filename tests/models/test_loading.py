"""Number types by what a device multiplies itself."""

from __future__ import annotations

import pytest
import torch

from sac_rag.models.loading import choose_dtype


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
