"""Distillation: a finetuned reader of the whole text shows, token by token, how an answer goes on.

The teacher is a Full-FT adapter of the student's base and layout. Both are LoRAs on one set of weights. A mix of
forward and reverse KL, as in KV-Distill (Chari et al., 2025), taken on the answer's tokens and its end, temperature 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from sac_rag.compress import adapter
from sac_rag.compress.methods.base import Method
from sac_rag.errors import ConfigError
from sac_rag.models.adapters import adapter_sha256
from sac_rag.train.batch import Batch, Row, asking, scored_logits

FORWARD = 0.6
"""Share of KL(teacher || student); the rest is KL(student || teacher)."""


class Teacher:
    """A Full-FT method that is read without gradients. fingerprint: SHA-256 of its tensors, for the card."""

    def __init__(self, method: Method, fingerprint: str = "") -> None:
        self.method, self.fingerprint = method, fingerprint
        for parameter in method.parameters().values():
            parameter.requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, student: Method, base_fingerprint: str) -> Teacher:
        """The adapter in `folder` on the student's own base weights.

        Raises AdapterError when it was trained for another base, ConfigError when it is no Full-FT adapter or its
        prompt layout is not the student's.
        """
        backbone = student.backbone
        card = adapter.Card.read(folder)
        method, _ = adapter.load(folder, backbone.decoder, backbone.tokenizer, base_fingerprint=base_fingerprint)
        if not method.reads_with_lora:
            raise ConfigError(
                f"the teacher {folder} has method {card.method!r}; a teacher reads the whole text: "
                "train one with --method full-ft"
            )
        own, other = student.layout.to_mapping(), method.layout.to_mapping()
        for name, value in own.items():
            if value != other[name]:
                raise ConfigError(
                    f"the teacher {folder} was trained with layout {name} {other[name]!r}, the student has {value!r}; "
                    f"train both with one layout"
                )
        return cls(method, adapter_sha256(folder))

    def divergence(self, batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        """Mean divergence (nats) over the tokens of all answers that have a `pair`, and their ends.

        logits: the student's at these tokens, (tokens, vocabulary), in the batch's order. Differentiable in them.
        """
        with torch.no_grad():
            mine = scored_logits(self._same_questions(batch), self.method)
        return mixed_divergence(logits, mine)

    def _same_questions(self, batch: Batch) -> Batch:
        """The questions of a batch behind the whole text, in the teacher's own layout."""
        backbone, layout = self.method.backbone, self.method.layout
        ask, end, gap = asking(backbone, layout), backbone.template(layout.end), backbone.template(layout.separator)
        own = Batch()
        for i, rows in enumerate(batch.readings):
            pairs = [row.pair for row in rows if row.pair]
            if pairs:
                asked = [Row([*(head := ask(q)), *a, *end], len(head)) for q, a in pairs]
                own.add(self.method.pieces(batch.text(i, gap)), 1.0, [len(own.front)], asked)
                own.layouts.append(None)
        return own


def mixed_divergence(student: torch.Tensor, teacher: torch.Tensor, forward: float = FORWARD) -> torch.Tensor:
    """forward * KL(teacher || student) + (1 - forward) * KL(student || teacher), mean over tokens, in fp32.

    student, teacher: logits (tokens, vocabulary).
    """
    s, t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    ahead = F.kl_div(s, t, log_target=True, reduction="none").sum(-1)
    back = F.kl_div(t, s, log_target=True, reduction="none").sum(-1)
    return (forward * ahead + (1 - forward) * back).mean()
