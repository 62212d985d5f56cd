"""Model families whose layers sac-rag computes itself, and what keeps one of their models from being read.

The only place that names architectures: folders, hub ids, .gguf files and loaded models are all checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sac_rag.errors import ModelError


@dataclass(frozen=True)
class Family:
    """What sets a decoder apart from a Llama. Tied embeddings are a matter of each model's config."""

    title: str
    gguf: str
    """What a .gguf file calls its architecture."""
    norms: tuple[str, ...] = ()
    """Modules of its attention that normalise each head's queries and keys before RoPE."""
    biased: tuple[str, ...] = ()
    """Linear layers that always have a bias."""
    bias_is_asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of the config that give linear layers a bias, and which."""
    window: int | None = None
    """Sliding window of a config that names none."""
    window_is_asked: bool = False
    """Whether `use_sliding_window` turns the window on, for layers from `max_window_layers` on."""


_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")

FAMILIES: Mapping[str, Family] = {
    "llama": Family("Llama", "llama", bias_is_asked={"attention_bias": _ATTENTION, "mlp_bias": _MLP}),
    "mistral": Family("Mistral", "llama", window=4096),
    "qwen2": Family("Qwen2", "qwen2", biased=_ATTENTION[:3], window=4096, window_is_asked=True),
    "qwen3": Family(
        "Qwen3",
        "qwen3",
        norms=("q_norm", "k_norm"),
        bias_is_asked={"attention_bias": _ATTENTION},
        window=4096,
        window_is_asked=True,
    ),
}
"""By the `model_type` of a config."""

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of RoPE whose frequencies do not depend on how long a text is: what was stored can be placed anywhere."""


def weights_of(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight of a model, by its name in the files, with its shape, in the order of the model's modules.

    config: as transformers gives it, every field there. The head is not among them where it is tied to the embeddings.
    """
    family = FAMILIES[config["model_type"]]
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    outputs, inputs = {"q_proj": queries, "o_proj": width, "down_proj": width}, {"o_proj": queries, "down_proj": inner}
    biased = {*family.biased, *(n for asked, names in family.bias_is_asked.items() if config.get(asked) for n in names)}
    layer: dict[str, tuple[int, ...]] = {}
    for part, names, usual in (("self_attn", _ATTENTION, keys), ("mlp", _MLP, inner)):
        for name in names:
            layer[f"{part}.{name}.weight"] = (outputs.get(name, usual), inputs.get(name, width))
            if name in biased:
                layer[f"{part}.{name}.bias"] = (outputs.get(name, usual),)
        if part == "self_attn":
            layer |= {f"{part}.{norm}.weight": (dim,) for norm in family.norms}
    layer |= {f"{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for index in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    found["model.norm.weight"] = (width,)
    return found if config["tie_word_embeddings"] else found | {"lm_head.weight": (vocabulary, width)}


def supported() -> str:
    """The families in words."""
    *most, last = (family.title for family in FAMILIES.values())
    return f"{', '.join(most)} or {last}"


def family_of(config: Any, origin: str) -> Family:
    """The family of a model by its config, as config.json holds it. origin: how the model is called in errors.

    Raises ModelError naming an unknown family, an active sliding window, RoPE that changes with the length of a text,
    or an activation other than SiLU.
    """
    settings: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    kind = settings.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise ModelError(f"{origin} is a {kind!r} model; sac-rag reads {supported()} (model_type {_kinds()})")
    check_window(_window(settings, family), settings.get("max_position_embeddings"), family.title, origin)
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    scaling = (rope.get("rope_type") or rope.get("type") or "default") if isinstance(rope, Mapping) else rope
    if scaling not in STATIC_ROPE:
        raise ModelError(
            f"{origin} has RoPE of type {scaling!r}; a memory is placed by {', '.join(STATIC_ROPE)}: choose another "
            "model, or set one of these in its config"
        )
    if (activation := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ModelError(f"{origin} has the activation {activation!r}; sac-rag computes SiLU: choose another model")
    return family


def check_window(window: Any, context: Any, title: str, origin: str) -> None:
    """Raises ModelError where layers attend fewer tokens than a model's context holds."""
    if isinstance(window, int) and not (isinstance(context, int) and context <= window):
        raise ModelError(
            f"{origin} is a {title} model whose layers attend a sliding window of {window} tokens: a memory in "
            "front of them would be out of sight; choose a model without one (its config has sliding_window null)"
        )


def check_gguf(architecture: str, experts: int, origin: str) -> None:
    """Raises ModelError where a .gguf file holds a model of no family above."""
    if experts or architecture not in {family.gguf for family in FAMILIES.values()}:
        kind = f"{architecture} with {experts} experts" if experts else architecture
        raise ModelError(f"{origin} is a {kind!r} model; sac-rag reads {supported()} (Mistral files say 'llama')")


def _window(settings: Mapping[str, Any], family: Family) -> Any:
    """The tokens that any layer's attention is limited to; None: no limit."""
    if family.window is None or (family.window_is_asked and not settings.get("use_sliding_window")):
        return None
    if family.window_is_asked:
        layers, first = settings.get("num_hidden_layers"), settings.get("max_window_layers", 28)
        kinds = settings.get("layer_types")
        if "sliding_attention" not in kinds if kinds else isinstance(layers, int) and first >= layers:
            return None
    return settings.get("sliding_window", family.window)


def _kinds() -> str:
    return ", ".join(repr(kind) for kind in FAMILIES)
