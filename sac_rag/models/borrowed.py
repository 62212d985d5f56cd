"""What a folder would have another package do that loads it.

sentence-transformers imports classes that files name, some releases of it also code of the folder itself, and unpickles
weights where it finds no others. So a folder is looked at before that is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sac_rag.errors import ModelError
from sac_rag.foreign import read_json

KINDS = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
"""Modules that import nothing by name but an activation of torch."""
WEIGHED = ("Dense", "LayerNorm")
ACTIVATIONS = (
    *("activation_function", "activation_fn", "default_activation_function"),
    "sbert_ce_default_activation_function",
)


def check_borrowed(folder: Path) -> None:
    """Raises ModelError for a folder that names classes other than these, or whose modules are pickles."""
    try:
        modules = read_json(folder / "modules.json") if (folder / "modules.json").exists() else []
        for module in modules:
            _check_module(folder, str(module["type"]), str(module.get("path", "")))
        for place in {folder, *(folder / str(module.get("path", "")) for module in modules)}:
            if (path := place / "config.json").exists():
                for name in _activations(read_json(path)):
                    if not name.startswith("torch.nn."):
                        raise ModelError(f"{path} names the activation {name[:80]!r}, which is none of torch.nn")
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{folder} does not say of what modules its model is made ({error!r})") from error


def _check_module(folder: Path, name: str, path: str) -> None:
    kind = name.rpartition(".")[2]
    if kind not in KINDS or not name.startswith("sentence_transformers."):
        raise ModelError(
            f"{folder / 'modules.json'} names the module {name[:80]!r}; nothing but {', '.join(KINDS)} of "
            "sentence_transformers is loaded, as others may bring code along"
        )
    if kind in WEIGHED and not (folder / path / "model.safetensors").is_file():
        raise ModelError(f"{folder / path} has no model.safetensors, and pickles are never loaded: save it as that")


def _activations(config: Mapping[str, Any]) -> Iterator[str]:
    for part in (config, config.get("sentence_transformers") or {}):
        yield from (str(part[key]) for key in ACTIVATIONS if part.get(key) is not None)
