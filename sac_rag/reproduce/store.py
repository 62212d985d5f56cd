"""Runs on disk: one JSON file each, found again by what they are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sac_rag.compress.adapter import write_atomic
from sac_rag.errors import ConfigError
from sac_rag.evaluate.results import versions
from sac_rag.foreign import read_json
from sac_rag.reproduce.place import RUNS, Place
from sac_rag.reproduce.specs import Spec


@dataclass(frozen=True)
class Store:
    """The folder of a reproduction's runs."""

    place: Place

    def path(self, spec: Spec) -> Path:
        return self.place.output / RUNS / f"{spec.kind}-{self.place.key(spec)}.json"

    def find(self, spec: Spec) -> dict[str, Any] | None:
        """The result of a finished run; None where there is none. ConfigError names a damaged file."""
        path = self.path(spec)
        if not path.exists():
            return None
        try:
            result = read_json(path)["result"]
            if not isinstance(result, dict):
                raise ValueError(f"its result is {type(result).__name__}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is no stored run ({error}); remove it to have it computed again") from error
        return result

    def keep(self, spec: Spec, result: dict[str, Any], seconds: float) -> None:
        """Store a finished run; a kill leaves it whole or not at all."""
        path = self.path(spec)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {
            "label": spec.label,
            "fingerprint": self.place.key(spec),
            "settings": self.place.settings(spec),
            "seconds": round(seconds, 3),
            "versions": versions(),
            "result": result,
        }
        write_atomic(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
