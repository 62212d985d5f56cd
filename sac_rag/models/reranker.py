"""Cross-encoders: how well each passage answers a question, both read together. Slower and better than vectors."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from sac_rag.errors import ConfigError, ModelError
from sac_rag.models import hub
from sac_rag.models.borrowed import check_borrowed
from sac_rag.models.fingerprints import weight_files
from sac_rag.records import Hit

Reranker: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]
"""(question, texts) -> a score for each text, higher is better."""

BATCH = 16
"""Pairs that are read together."""


class CrossEncoder:
    """A sentence-transformers cross-encoder with one score, a `Reranker`. Loaded at its first use.

    name: a folder, or a hub id that `sac models pull` has fetched: nothing is fetched here, since a name may come out
    of a file. Needs the package sentence-transformers (extra `rerank`).
    """

    def __init__(self, name: str) -> None:
        self.name, self.path = name, _resolve(name)
        self._lock = threading.Lock()
        self._model: Any = None

    @classmethod
    def shared(cls, name: str) -> CrossEncoder:
        """One of this name for the process."""
        return _shared(name)

    def __call__(self, question: str, texts: Sequence[str]) -> list[float]:
        """Scores of texts for a question; raises ModelError for a model with more than one score a pair."""
        if not texts:
            return []
        with self._lock:
            if self._model is None:
                self._model = self._load()
            scores = self._model.predict(
                [(question, text) for text in texts], batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True
            )
        if scores.shape != (len(texts),):
            raise ModelError(f"{self.name} gives {scores.shape[-1]} scores a pair, a reranker one: choose another")
        return [float(score) for score in scores]

    def _load(self) -> Any:
        check_borrowed(self.path)
        try:
            from sentence_transformers import CrossEncoder as Model
        except ImportError as error:
            raise ModelError(
                f"the reranker {self.name} needs another package: pip install 'sac-rag[rerank]'"
            ) from error
        safe = {"use_safetensors": True}
        return Model(str(self.path), local_files_only=True, trust_remote_code=False, device="cpu", model_kwargs=safe)


def reranked(question: str, hits: Sequence[Hit], reranker: Reranker) -> list[Hit]:
    """Hits by what a reranker gives their texts, best first; of equal ones in the order they had.

    Raises ConfigError where it gives anything but a finite number for each.
    """
    scores = [float(score) for score in reranker(question, [hit.passage.text for hit in hits])]
    if len(scores) != len(hits) or not all(map(math.isfinite, scores)):
        raise ConfigError(f"the reranker gave {scores[:3]}… for {len(hits)} texts; it must give each a finite number")
    ranked = sorted(zip(hits, scores, strict=True), key=lambda pair: -pair[1])
    return [dataclasses.replace(hit, reranked=score) for hit, score in ranked]


_shared = lru_cache(maxsize=4)(CrossEncoder)


def _resolve(name: str) -> Path:
    local = Path(name).expanduser()
    if local.is_dir():
        folder = local
    elif hub.is_hub_id(name):
        folder = hub.fetch(name, None, local_only=True)
    else:
        raise ModelError(f"no reranker at {name!r}: name a folder, or a hub id that `sac models pull` has fetched")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no cross-encoder: it has no config.json")
    weight_files(folder)
    return folder
