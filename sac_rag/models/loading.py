"""A model folder into memory: device, dtype, weights and tokenizer. Imports torch, so nobody imports this early."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from sac_rag.errors import ConfigError, ModelError, SacError
from sac_rag.models import decoder
from sac_rag.models.checking import check_sample
from sac_rag.models.tokenizer import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_base(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, tokenizer) of a model folder, safetensors only: a `Decoder`, or transformers' model where that is needed.

    transformers is imported for a folder that is new to the cache, and for weights that are not those of a family.
    Raises ModelError, and HashMismatch for bytes that rotted.
    """
    check_sample(path)
    try:
        tokenizer = load_tokenizer(path)
        return decoder.load(path, device, dtype) or _by_transformers(path, device, dtype), tokenizer
    except SacError:
        raise
    except Exception as error:  # what reads a folder's files raises anything over wrong ones, a bare Exception too
        raise ModelError(f"the model in {path} cannot be loaded: {error}") from error


def _by_transformers(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options).to(device)


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU; any torch device by name. Of several processes that train
    together each has a GPU of its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 where the hardware multiplies it natively, else float32."""
    if name == "auto":
        cpu_flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else any(getattr(torch.cpu, f, lambda: False)() for f in cpu_flags)
        )
        return torch.bfloat16 if native else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype is {name!r}; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def eos_ids(model: Any) -> list[int]:
    """End-of-text ids of a model's own generation settings."""
    found = model.generation_config.eos_token_id
    return [] if found is None else [found] if isinstance(found, int) else list(found)
