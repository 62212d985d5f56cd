"""The reader adapter: a LoRA on the model that reads behind memory. Memories, encoder and base stay as they are.

The paper's reader is the frozen base; this is an addition to it. It is trained after the encoder and for its memories,
and only tokens that are read pass through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from sac_rag.compress.backbone import Backbone, LoraSpec
from sac_rag.errors import AdapterError

READER = "reader."
"""Begins the names of its parameters: they are trained in a stage of their own, and stored in a file of their own."""


class ReaderAdapter:
    """A LoRA on all layers of a backbone's decoder, whose own weights stay as they are.

    backbone: reads with it by `use_lora`; what it writes is of no use. evidence: sentences that are read as text beside
    memory, where a question does not say.
    """

    def __init__(self, base: Backbone, spec: LoraSpec, *, trains: bool = False) -> None:
        """trains: as of `Backbone`."""
        self.spec, self.evidence = replace(spec, whole=True), 0
        self.backbone = Backbone(base.decoder, base.tokenizer, self.spec, trains=trains)

    def parameters(self) -> dict[str, nn.Parameter]:
        """By stable name, fp32."""
        return {READER + name: p for name, p in self.backbone.trainable()}

    @torch.no_grad()
    def start(self, tensors: Mapping[str, torch.Tensor], share: float) -> None:
        """Begin with a share of another LoRA of the same shape, such as Full-FT's. tensors: by name, without `READER`.

        Raises AdapterError where they are of another shape.
        """
        mine = {name.removeprefix(READER): p for name, p in self.parameters().items()}
        if unlike := sorted(
            {n for n, p in mine.items() if n not in tensors or tensors[n].shape != p.shape} | (set(tensors) - set(mine))
        ):
            raise AdapterError(f"a reader adapter cannot begin with a LoRA of another shape ({unlike[0]}, and others)")
        for name, p in mine.items():
            p.copy_(tensors[name] if "lora_A" in name else share * tensors[name])

    def folded(self) -> Backbone:
        """`Backbone.folded` of it."""
        return self.backbone.folded()
