"""The reader adapter learns to answer behind memories that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sac_rag.compress import adapter
from sac_rag.compress.backbone import LoraSpec
from sac_rag.compress.methods.base import Method
from sac_rag.compress.reader_adapter import READER, ReaderAdapter
from sac_rag.errors import ConfigError
from sac_rag.models.adapters import find_adapter
from sac_rag.train.batch import Batch, answer_loss, readings_of
from sac_rag.train.config import TrainConfig
from sac_rag.train.objectives.base import Loss
from sac_rag.train.objectives.questions import Questions, QuestionSettings
from sac_rag.train.teacher import Teacher


@dataclass(frozen=True)
class ReaderSettings(QuestionSettings):
    """A reader adapter (reader)"""

    reader_rank: int = 32
    """Inner width r of the reader's LoRA; alpha is twice as much."""
    reader_from: str = ""
    """Folder of a Full-FT adapter of this rank, or default: a fresh reader begins with `reader_share` of it. Empty: it
    begins as the base model."""
    reader_share: float = 0.5
    """Share of the adapter of `reader_from` that a fresh reader begins with."""

    def check(self, steps: int) -> None:
        if self.future_from:
            raise ConfigError(f"future_from is {self.future_from:g}; objective reader trains no encoder: leave it out")
        super().check(steps)
        if not 1 <= self.reader_rank <= 1024 or not 0 < self.reader_share <= 1:
            raise ConfigError(
                f"reader_rank is {self.reader_rank} (1..1024), reader_share is {self.reader_share:g} (above 0, at most "
                "1)"
            )
        if self.distil_weight:
            raise ConfigError(f"distil_weight is {self.distil_weight:g}; objective reader takes no teacher: use 0")


class Answering(Questions):
    """Questions behind memories that are written without gradients; what reads them is trained."""

    Settings = ReaderSettings
    owns = READER
    takes_teacher = False
    own: ReaderSettings

    def __init__(self, config: TrainConfig, method: Method, teacher: Teacher | None = None) -> None:
        if method.reader is None:
            raise ConfigError(f"this {method.name} has no reader adapter to train: see `prepare`")
        self._reader = method.reader
        super().__init__(config, method, teacher)

    def reads(self) -> ReaderAdapter:
        return self._reader

    @classmethod
    def prepare(cls, config: TrainConfig, method: Method, begun: Path | None, card: adapter.Card) -> None:
        """Give a method the reader that lies beside the adapter it began from, or a fresh one."""
        own: Any = config.own
        if begun is None or not method.trains or method.reads_with_lora:
            raise ConfigError(
                "objective reader trains what reads the memories of an adapter, so it begins from one that compresses: "
                "add --from, such as --from default"
            )
        if card.reader:
            method.reader = adapter.load_reader(begun, method, card, trains=True)
            return
        spec = LoraSpec(own.reader_rank, 2.0 * own.reader_rank)
        method.reader = ReaderAdapter(method.backbone, spec, trains=True)
        if own.reader_from:
            method.reader.start(_tensors(find_adapter(card.base, "full-ft", own.reader_from)), own.reader_share)

    def loss(self, batch: Batch, step: int) -> Loss:
        with torch.no_grad():
            memories = batch.memories(self.method, batch.written(self.method))
        return answer_loss(batch, self.method.read(memories, readings_of(batch)))


def _tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    """Of a Full-FT adapter."""
    if (found := adapter.Card.read(folder).method) != "full-ft":
        raise ConfigError(f"reader_from {folder} is an adapter of method {found!r}: it takes one of full-ft")
    return adapter.read_tensors(folder / "adapter.safetensors")
