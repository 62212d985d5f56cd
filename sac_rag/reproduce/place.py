"""Where a reproduction happens: its folders, models and devices, and one loaded engine at a time."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sac_rag.answer.engine import Engine
from sac_rag.errors import ConfigError
from sac_rag.evaluate.results import file_sha256
from sac_rag.models.loading import choose_device, choose_dtype, load_base
from sac_rag.models.sources import fingerprint_of, resolve_base, tokenizer_fingerprint_of
from sac_rag.reproduce import tiny
from sac_rag.reproduce.scales import Scale
from sac_rag.reproduce.specs import Model, Spec, Train

MODELS, ADAPTERS, RUNS, FIGURES = "models", "adapters", "runs", "figures"


@dataclass
class Place:
    """Folders of data and output, and how to compute."""

    scale: Scale
    data: Path
    output: Path
    device: str = "auto"
    dtype: str = "auto"
    batch: int = 32
    _engines: dict[tuple[str, ...], Engine] = field(default_factory=dict, repr=False)

    @classmethod
    def make(cls, scale: Scale, data: str | Path | None, output: str | Path, **how: Any) -> Place:
        """Raises ConfigError where a scale needs data and has none; the tiny one makes its own."""
        output = Path(output)
        if data is None and scale.model:
            raise ConfigError(f"--scale {scale.name} needs --data DIR, the folder that holds lm/, qa/ and summ/")
        if data is not None and not Path(data).is_dir():
            raise ConfigError(f"--data is {str(data)!r}, no folder; give the one that holds lm/, qa/ and summ/")
        output.mkdir(parents=True, exist_ok=True)
        if not scale.model:
            tiny.write_model(output / MODELS / "tiny")
        return cls(scale, tiny.write_data(output / "data") if data is None else Path(data), output, **how)

    def model(self, model: str | Model) -> str:
        """What a base model is loaded by: its name, or the folder of one that was made here."""
        if isinstance(model, Model):
            return str(self.folder(MODELS, model))
        return model or str((self.output / MODELS / "tiny").resolve())

    def file(self, name: str) -> Path:
        """A data file by its name relative to the folder; raises ConfigError where it is missing."""
        path = self.data / name
        if not path.is_file():
            raise ConfigError(f"{name} is not in the folder of data {self.data}: leave its experiment out, or add it")
        return path

    def folder(self, room: str, spec: Spec) -> Path:
        """The folder of a run that makes more than a result."""
        return (self.output / room / f"{spec.kind}-{self.key(spec)}").resolve()

    def adapter(self, train: Train | None) -> str:
        """What names an adapter to an engine: its folder; "default" for a method without one."""
        return str(self.folder(ADAPTERS, train)) if train else "default"

    # -- what a run is -----------------------------------------------------------------------------------

    def settings(self, spec: Spec) -> dict[str, Any]:
        """A run with hashes of its models and files, and how it is computed: what its JSON is named after."""
        return {
            **described(spec),
            "dtype": str(choose_dtype(self.dtype, choose_device(self.device))),
            "model_sha256": {name or "tiny": self._model(self.model(name)) for name in _all(spec, "models")},
            "file_sha256": {name: self._file(str(self.file(name))) for name in _all(spec, "files")},
        }

    def key(self, spec: Spec) -> str:
        """The run's name on disk: the first digits of the SHA-256 of its settings."""
        from sac_rag.config import fingerprint

        return fingerprint(self.settings(spec))[:16]

    def __post_init__(self) -> None:
        self._file = cache(file_sha256)
        self._model = cache(_model_sha256)

    # -- what computes -----------------------------------------------------------------------------------

    def engine(self, method: str, model: str | Model, adapter: Train | None) -> Engine:
        """The engine of these; whatever was loaded before makes room for it."""
        key = method, self.model(model), self.adapter(adapter)
        if key not in self._engines:
            self.unload()
            self._engines[key] = Engine(key[1], key[0], key[2], device=self.device, dtype=self.dtype)
        return self._engines[key]

    def base(self, model: str | Model) -> tuple[Any, Any]:
        """(model, tokenizer) of a base model, loaded anew."""
        self.unload()
        device = choose_device(self.device)
        return load_base(resolve_base(self.model(model)), device, choose_dtype(self.dtype, device))

    def unload(self) -> None:
        """Give up what is loaded."""
        self._engines.clear()
        gc.collect()

    @property
    def torch_device(self) -> torch.device:
        return choose_device(self.device)


def described(spec: Spec) -> dict[str, Any]:
    """A run as JSON values, those that it needs within."""
    found: dict[str, Any] = {"kind": spec.kind}
    for name in spec.__dataclass_fields__:
        value = getattr(spec, name)
        found[name] = described(value) if isinstance(value, Spec) else value
    return found


def _all(spec: Spec, attribute: str) -> list[str]:
    """Names of a run and of all that it needs, each once."""
    return sorted({name for one in (*spec.before(), spec) for name in getattr(one, attribute)})


def _model_sha256(name: str) -> str:
    folder = resolve_base(name)
    return f"{fingerprint_of(folder)[:16]}-{tokenizer_fingerprint_of(folder)[:16]}"
