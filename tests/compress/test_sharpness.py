"""Keys that grow with the ratio: by how much, and nothing else."""

from __future__ import annotations

import pytest
import torch

from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.compress.layout import PromptLayout
from sac_rag.compress.methods.sac import Sac
from sac_rag.errors import ConfigError
from tests.conftest import byte_tokenizer, tiny_llama

TEXT = list(range(5, 65))


@pytest.fixture(scope="module")
def backbone():
    return Backbone(tiny_llama(), byte_tokenizer(), LoraSpec(4, 8.0))


def test_keys_alone_grow_and_only_above_five(backbone):
    plain, sharp = (Sac(backbone, PromptLayout(prefix="x"), sharpness=s) for s in (0.0, 0.15))
    ratios = [1.0, 2.0, 5.0, 15.0, 51.0]
    with torch.no_grad():
        pairs = list(zip(plain.write_chunks([TEXT] * 5, ratios), sharp.write_chunks([TEXT] * 5, ratios), strict=True))
    factors = [1.0, 1.0, 1.0, 3.0**0.15, 10.2**0.15]
    for (a, b), factor in zip(pairs, factors, strict=True):
        assert torch.allclose(b.keys, a.keys * factor) and torch.equal(b.values, a.values)
        assert torch.equal(b.positions, a.positions) and b.source_len == a.source_len
        assert factor > 1 or torch.equal(b.keys, a.keys)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_sharpness_out_of_range_is_named(backbone, value):
    with pytest.raises(ConfigError, match=f"sharpness is {value:g}"):
        Sac(backbone, PromptLayout(prefix="x"), sharpness=value)
