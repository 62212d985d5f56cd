"""Our LoRA is peft's: names, start, products."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sac_rag.compress.backbone import LORA_TARGETS, Backbone, LoraSpec
from tests.conftest import byte_tokenizer, tiny_model


def by_peft(model: Any, spec: LoraSpec) -> Any:
    """The oracle: peft's own injection, with its parameters as fp32."""
    from peft import LoraConfig, inject_adapter_in_model

    dead = () if spec.whole else tuple(t for t in spec.targets if t not in ("k_proj", "v_proj"))
    last = model.config.num_hidden_layers - 1
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=0.0,
        target_modules=list(spec.targets),
        exclude_modules=rf".*\.layers\.{last}\..*({'|'.join(dead)})" if dead else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = inject_adapter_in_model(config, copy.deepcopy(model))
    for name, parameter in twin.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", [LoraSpec(4, 8.0), LoraSpec(2, 6.0, ("q_proj", "v_proj")), LoraSpec(4, whole=True)])
def test_it_starts_as_that_of_peft(dtype: torch.dtype, spec: LoraSpec) -> None:
    model = tiny_model("qwen2").to(dtype)
    wanted = {n.replace(".default", ""): p for n, p in by_peft(model, spec).named_parameters() if "lora_" in n}
    found = dict(Backbone(model, byte_tokenizer(), spec).trainable())
    assert list(found) == list(wanted)
    for name, parameter in found.items():
        assert parameter.dtype == torch.float32 and parameter.requires_grad
        assert torch.equal(parameter, wanted[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_products_are_those_of_peft(dtype: torch.dtype) -> None:
    model, spec = tiny_model().to(dtype), LoraSpec(4, 8.0, LORA_TARGETS, whole=True)
    theirs, ours = by_peft(model, spec), Backbone(model, byte_tokenizer(), spec).encoder
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for (name, a), (other, b) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
            assert name == other
            if "lora_" in name:
                a.copy_(torch.randn(a.shape, generator=generator))
                b.copy_(a)
        ids = torch.arange(3, 40)[None]
        assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


@pytest.mark.parametrize("spec", [LoraSpec(4, 8.0), LoraSpec(4, whole=True)])
def test_training_is_on_the_layers_of_peft(spec: LoraSpec) -> None:
    """Names, values and products of a backbone that trains are those of one that does not."""
    from peft.tuners.lora import Linear

    model = tiny_model("qwen3").bfloat16()
    trains, reads = (Backbone(model, byte_tokenizer(), spec, trains=t) for t in (True, False))
    assert isinstance(trains.encoder.model.layers[0].self_attn.q_proj, Linear)
    theirs, ours = dict(trains.trainable()), dict(reads.trainable())
    assert list(theirs) == list(ours)
    for name, p in theirs.items():
        assert p.dtype == torch.float32 and p.requires_grad and torch.equal(p, ours[name]), name
        with torch.no_grad():
            p.add_(0.1)
            ours[name].add_(0.1)
    ids = [torch.arange(3, 40)]
    picks = [trains.even(torch.arange(0, 37, 5))]
    (a,), (b,) = (backbone.encode(ids, picks) for backbone in (trains, reads))
    assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
