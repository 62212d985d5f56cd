"""Weights laid out beforehand: the same bits, and the plain weight where that cannot be had."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sac_rag.compress.backbone import Backbone
from sac_rag.compress.packed import Packed, pack
from sac_rag.compress.session import Session
from sac_rag.families import FAMILIES
from tests.conftest import byte_tokenizer, tiny_model


@pytest.mark.parametrize("rows", [1, 2, 16, 33, 200])
def test_a_packed_weight_multiplies_like_the_plain_one(rows):
    weight, x = torch.randn(96, 64).bfloat16(), torch.randn(rows, 64).bfloat16()
    packed = pack(weight)
    got = packed.times(x) if isinstance(packed, Packed) else F.linear(x, packed)
    torch.testing.assert_close(got, F.linear(x, weight), atol=0.05, rtol=0.02)
    assert weight is not packed or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def test_what_the_kernels_do_not_take_stays_as_it_is(monkeypatch):
    weight = torch.randn(8, 8)
    assert pack(weight) is weight

    def fails(*_):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", fails, raising=False)
    half = weight.bfloat16()
    assert pack(half) is half


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_packed_weight_adds_its_bias(rows):
    weight, bias, x = torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16(), torch.randn(rows, 64).bfloat16()
    packed = pack(weight, bias)
    got = packed.times(x, bias) if isinstance(packed, Packed) else F.linear(x, packed, bias)
    torch.testing.assert_close(got, F.linear(x, weight, bias), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_backbone_reads_the_same(family):
    plain, packed = (Backbone(tiny_model(family).bfloat16(), byte_tokenizer()) for _ in range(2))
    packed.pack()
    prompt = [[torch.arange(3, 40).tolist()]]
    with torch.inference_mode():
        for b in (plain, packed):
            assert b.plain_logits(torch.arange(3, 9)).isfinite().all()
        torch.testing.assert_close(Session(packed, prompt).logits, Session(plain, prompt).logits, atol=0.05, rtol=0.02)
