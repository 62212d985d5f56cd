"""Finished runs in a folder, so that a repeated evaluation computes only what is missing; and what they came from."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sac_rag import __version__
from sac_rag.answer.engine import adapter_folder, placing_of
from sac_rag.compress.adapter import Card, write_atomic
from sac_rag.config import fingerprint, options_of
from sac_rag.errors import ConfigError
from sac_rag.evaluate.runs import Prediction, RunT, Scored
from sac_rag.models.adapters import adapter_sha256
from sac_rag.models.sources import fingerprint_of, resolve_base, tokenizer_fingerprint_of

SCORING = 2
"""Raised when scoring or what a reader is shown changes, so that results stored before are not taken for new ones."""


@dataclass(frozen=True)
class Origin:
    """Hashes of what answers. Nothing is loaded to know them."""

    model_sha256: str
    tokenizer_sha256: str
    method: str
    adapter_sha256: str | None
    """None where the method has no adapter."""
    layout: dict[str, str]
    built: dict[str, Any]
    """LoRA settings and options of the adapter's card; the positions of its memories where they are not the default."""

    @classmethod
    def of(cls, model: str, method: str, adapter: str, option: tuple[str, ...] = ()) -> Origin:
        """Raises ModelError or AdapterError when one of them cannot be had."""
        base, folder = resolve_base(model), adapter_folder(model, method, adapter)
        card = Card.read(folder) if folder else None
        positions = placing_of(model, method, adapter).unusual().get("positions")
        return cls(
            model_sha256=fingerprint_of(base),
            tokenizer_sha256=tokenizer_fingerprint_of(base),
            method=method,
            adapter_sha256=adapter_sha256(folder) if folder else None,
            layout=dict(card.layout) if card else {},  # that of the chat template, which the tokenizer's hash knows
            built={
                "lora": card.lora if card else {},
                "options": {**(card.options if card else {}), **options_of(option)},
                **({"positions": positions} if positions else {}),
            },
            reader=dict(card.reader) if card else {},
        )

    reader: dict[str, Any] = field(default_factory=dict)
    """The reader adapter that its card names; empty where there is none."""

    def determines(self, by_adapter: bool, reads: str = "base") -> dict[str, Any]:
        """What of it decides a reader's answers: of an adapter, some see the layout alone. reads: as in
        AskConfig.reader."""
        found: dict[str, Any] = {
            "model_sha256": self.model_sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "layout": self.layout,
        }
        if by_adapter:
            found |= {"method": self.method, "adapter_sha256": self.adapter_sha256, **self.built}
        if reads == "adapter":
            found |= {"reader_sha256": self.reader.get("sha256")}
        return found


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import torch
    import transformers

    return {"sac_rag": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}


def fingerprints(model: str, adapters: Mapping[str, str], methods: Mapping[str, str] | None = None) -> dict[str, Any]:
    """SHA-256 (hex) of base weights, tokenizer, and each adapter; one that `methods` leaves out is called after its."""
    origins = {name: Origin.of(model, (methods or {}).get(name, name), at) for name, at in adapters.items()}
    any_of_them = next(iter(origins.values()))
    return {
        "model_sha256": any_of_them.model_sha256,
        "tokenizer_sha256": any_of_them.tokenizer_sha256,
        "adapter_sha256": {name: o.adapter_sha256 for name, o in origins.items() if o.adapter_sha256},
    }


def file_sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes; raises ConfigError naming a file that cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a file of questions") from error


class Results:
    """A folder with two files a run: NAME.json (run, settings, versions) and NAME.jsonl.gz (predictions).

    NAME holds a hash of the settings: everything that determines the scores. The JSON is written last.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.taken = 0
        """Runs that were found here instead of computed."""

    def path(self, settings: Mapping[str, Any]) -> Path:
        """The JSON file of a run; its settings name at least set and reader."""
        ratio = f".{settings['ratio']:g}x" if settings.get("ratio") else ""
        key = fingerprint({"scoring": SCORING, **settings})[:16]
        return self.folder / f"{settings['set']}.{settings['reader']}{ratio}.{key}.json"

    def find(self, kind: type[RunT], settings: Mapping[str, Any]) -> Scored[RunT] | None:
        """The stored run of these settings; None when there is none. ConfigError names a damaged one."""
        path = self.path(settings)
        if not path.exists():
            return None
        try:
            run = kind(**json.loads(path.read_text("utf-8"))["run"])
            lines = gzip.decompress(_predictions(path).read_bytes()).decode("utf-8").splitlines()
            predictions = tuple(Prediction(**json.loads(line)) for line in lines)
            if len(predictions) != run.n:
                raise ValueError(f"{len(predictions)} predictions for {run.n} questions")
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
            raise ConfigError(f"{path} is no stored run ({error}); remove it to have it computed again") from error
        self.taken += 1
        return Scored(run, predictions)

    def keep(self, scored: Scored[Any], settings: Mapping[str, Any]) -> None:
        """Store a finished run at once; a kill leaves it whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(settings)
        lines = "".join(json.dumps(asdict(p)) + "\n" for p in scored.predictions)
        write_atomic(_predictions(path), gzip.compress(lines.encode(), mtime=0))
        whole = {"run": asdict(scored.run), "settings": settings, "versions": versions()}
        write_atomic(path, (json.dumps(whole, indent=1) + "\n").encode())


def _predictions(path: Path) -> Path:
    return path.with_suffix(".jsonl.gz")
