"""A method of a system without its training: for what does not depend on weights."""

from __future__ import annotations

from typing import Any

from sac_rag.compress.adapter import Card, build
from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.methods import METHODS
from sac_rag.compress.methods.base import Method
from sac_rag.compress.templates import layout_of
from sac_rag.reproduce.specs import Pairs
from sac_rag.reproduce.systems import System


def fresh(system: System, model: Any, tokenizer: Any, lora: Pairs) -> Method:
    """The method as training begins with it."""
    carries = METHODS.load(system.method).adapts != "nothing"
    spec = LoraSpec(**dict(lora))
    card = Card(
        base="",
        base_fingerprint="",
        method=system.method,
        ratios=(),
        lora={"rank": spec.rank, "alpha": spec.alpha, "targets": list(spec.targets)} if carries else {},
        options=dict(system.options),
        layout=layout_of(tokenizer).to_mapping(),
    )
    return build(model, tokenizer, card)
