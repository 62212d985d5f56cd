"""A .gguf file → a folder of safetensors, once. The weights are dequantised and rounded to bf16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sac_rag.errors import ModelError
from sac_rag.families import check_gguf, check_window, family_of
from sac_rag.models.gguf_head import read_head
from sac_rag.models.progress import Progress

RECIPE = "gguf-bf16-1"
"""Changes whenever the same file would give another model; cached folders are then made anew."""

Probes: TypeAlias = Sequence[tuple[str, tuple[int, ...]]]

PROBES = (
    "The year 2024 was  10 times\n\n3 longer; don't WE'LL\tnaïve 漢字 🙂",
    "  two leading spaces, x=1234.5e-6 <|im_start|>user\nhi<|im_end|>\n",
)
"""Texts whose token ids must survive saving: digits after spaces, contractions, bytes, control tokens."""


def convert(gguf: Path, out: Path, progress: Progress, probes: Probes = ()) -> None:
    """Write model and tokenizer of `gguf` to the empty folder `out` as safetensors (bf16) and check them by reloading.

    `probes` are (text, token ids) that the tokenizer must give: the loader rebuilds it from the file, and a release
    that rebuilds it otherwise must not pass for the same model. Raises ModelError for a file of another family
    (`families`) or one that cannot be converted faithfully.
    """
    progress(f"converting {gguf.name}", 0, None)
    head = read_head(gguf)
    check_gguf(head.architecture, head.experts, gguf.name)
    if head.rope_scaling != "none":
        raise ModelError(
            f"{gguf.name} uses RoPE scaling {head.rope_scaling!r}, which a .gguf file does not describe well enough: "
            f"use the model's hub id or safetensors folder"
        )
    import torch

    from sac_rag.models.quiet import quiet

    with quiet():
        model, tokenizer = _load(gguf)
        check_window(head.window, model.config.max_position_embeddings, head.architecture, gguf.name)
        family_of(model.config.to_dict(), gguf.name)
        if head.rope_factors:
            model.config.rope_parameters = _llama3_rope(gguf, model.config, head.rope_factors)
        model = model.to(torch.bfloat16)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # it names the .gguf; with it saving is refused
        for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        _split_digits(tokenizer, head.pre_tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        _tidy(out)
        _verify(out, model, tokenizer, probes)


def _load(gguf: Path) -> tuple[Any, Any]:
    import transformers

    options: dict[str, Any] = {}
    if config := getattr(transformers, "GgufConfig", None):
        # Newer releases may keep weights packed behind a kernel; dense ones are wanted.
        options["quantization_config"] = config(dequantize=True)
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        # Dequantised in fp32 and rounded once, by us: no release's choice of dtype gets in between.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype="float32", attn_implementation="eager", **where, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
    except Exception as error:  # the loaders trust the file: a broken one raises anything
        raise ModelError(f"{gguf.name} cannot be converted ({type(error).__name__}: {error})") from error
    return model, tokenizer


def _llama3_rope(gguf: Path, config: Any, factors: tuple[float, ...]) -> dict[str, Any]:
    """The rope parameters that give exactly these divisors. Without them long texts are silently misread."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta = config.rope_parameters["rope_theta"]
    plain = 1.0 / theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    found = torch.tensor(factors)
    kept = config.rope_parameters
    try:
        for factor in (8.0, 32.0, 16.0, 4.0):
            candidate = {
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
            config.rope_parameters = candidate
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
            if scaled.shape == found.shape and torch.allclose(plain / scaled, found, rtol=1e-3):
                return candidate
    finally:
        config.rope_parameters = kept
    raise ModelError(
        f"{gguf.name} scales RoPE by factors of no known model ({min(factors):g}..{max(factors):g}): "
        f"use the model's hub id or safetensors folder"
    )


def _split_digits(tokenizer: Any, pre_tokenizer: str) -> None:
    # This family learnt its merges with every digit split off first. Loading a .gguf forgets that, and spaces
    # or newlines in front of a number would become other tokens than those the model was trained on.
    if pre_tokenizer != "smollm":
        return
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def _tidy(out: Path) -> None:
    # Keys that describe this loading, not the model.
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))  # written here, a moment ago
    for key in ("is_local", "local_files_only", "name_or_path"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _verify(out: Path, model: Any, tokenizer: Any, probes: Probes) -> None:
    import torch
    import transformers

    again = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, local_files_only=True)
    saved, wanted = again.state_dict(), model.state_dict()
    wrong = sorted(set(saved) ^ set(wanted)) or [
        name for name, tensor in wanted.items() if not torch.equal(tensor, saved[name])
    ]
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    if tied != model.config.tie_word_embeddings:
        wrong.append("lm_head.weight (tying)")
    if wrong:
        raise ModelError(f"the converted model differs from its source in {wrong[0]} ({len(wrong)} in all)")
    reader = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    for text in PROBES:
        if reader(text).input_ids != tokenizer(text).input_ids or reader.chat_template != tokenizer.chat_template:
            raise ModelError(f"the converted tokenizer differs from its source on {text!r}")
    for text, ids in probes:
        if (found := reader(text).input_ids) != list(ids):
            raise ModelError(
                f"transformers {transformers.__version__} rebuilds the tokenizer of this file in another way: {text!r} "
                f"gives {found}, expected {list(ids)}; install another version of transformers"
            )
