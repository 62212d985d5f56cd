"""Training state in one safetensors file: parameters, optimiser moments, data order. Exact to the bit on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sac_rag.compress.adapter import write_atomic
from sac_rag.errors import ConfigError, TrainingError

FORMAT = "sac-training-1"


def save(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    state: Mapping[str, Any],
    averages: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write everything that the next step depends on, atomically. averages: means of parameters so far, by name."""
    from safetensors.torch import save as to_bytes

    tensors = {f"parameter/{n}": p.detach().cpu().contiguous() for n, p in parameters.items()}
    tensors |= {f"average/{n}": t.cpu().contiguous() for n, t in (averages or {}).items()}
    for name, parameter in parameters.items():
        for moment, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{moment}/{name}"] = value.detach().cpu().contiguous()
    write_atomic(path, to_bytes(tensors, metadata={"format": FORMAT, "state": json.dumps(state)}))


def restore(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    averages: dict[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Load `path` into parameters, optimiser and `averages`; returns the state given to `save`.

    Raises TrainingError when the file is damaged or belongs to another set of parameters.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as handle:
            meta = handle.metadata() or {}
            if meta.get("format") != FORMAT:
                raise TrainingError(f"{path} is not a training checkpoint ({meta.get('format')!r}, wanted {FORMAT!r})")
            tensors = {n: handle.get_tensor(n) for n in sorted(handle.keys())}
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read: {error}; delete it to start over") from error
    names = {n.removeprefix("parameter/") for n in tensors if n.startswith("parameter/")}
    odd = names ^ set(parameters) or {n for n, p in parameters.items() if tensors[f"parameter/{n}"].shape != p.shape}
    if odd:
        raise TrainingError(
            f"{path} was made with another adapter shape (differs in {sorted(odd)[:3]}); use a new --output"
        )
    if averages is not None:
        kept = {n.removeprefix("average/"): t for n, t in tensors.items() if n.startswith("average/")}
        averages |= {n: t.to(parameters[n].device) for n, t in kept.items() if n in parameters}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            moments = {
                key.split("/", 2)[1]: tensors[key].to(parameter.device if tensors[key].ndim else "cpu")
                for key in tensors
                if key.startswith("optimiser/") and key.split("/", 2)[2] == name
            }
            if moments:
                optimiser.state[parameter] = moments
    return json.loads(meta["state"])


def check_same(folder: Path, noted: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first setting by which the run in `folder` is another than the one wanted.

    What was not noted of a run agrees.
    """
    for key, value in wanted.items():
        if noted.get(key, value) != value:
            raise ConfigError(
                f"{folder} holds a run with {key} {noted[key]!r}, this one has {value!r}; use another output folder, "
                "or the same settings"
            )
