"""Where the keys and values of a memory lie among those of the text itself: t-SNE, PCA, and one distance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.config import MAX_PASSAGE_TOKENS
from sac_rag.errors import ConfigError
from sac_rag.reproduce.drawing import REMEDY
from sac_rag.reproduce.place import Place
from sac_rag.reproduce.specs import Vectors
from sac_rag.train.data import SHORTEST, read_contexts

PERPLEXITY = 30.0
"""Of t-SNE, where there are points enough."""
KEYS, VALUES = "keys", "values"


def compute(
    spec: Vectors, place: Place, listen: Callable[[int, int], None], stop: Callable[[], bool]
) -> dict[str, Any]:
    """Coordinates of both kinds by what was projected and how; and how far a slot is from the nearest token's vector,
    in units of how far tokens are from their nearest."""
    engine = place.engine(spec.adapter.method, spec.adapter.model, spec.adapter)
    backbone, method = engine.method.backbone, engine.method
    layer = backbone.kv_shape[0] // 2
    memory: dict[str, list[torch.Tensor]] = {KEYS: [], VALUES: []}
    text: dict[str, list[torch.Tensor]] = {KEYS: [], VALUES: []}
    slots = 0
    for context in read_contexts(place.file(spec.file)):
        ids = backbone.tokens(context.text)[:MAX_PASSAGE_TOKENS]
        if len(ids) < SHORTEST:
            continue
        with engine.busy(), torch.inference_mode():
            (kv,) = method.compress([ids], spec.ratio)
            every = backbone.even(torch.arange(len(ids)))
            (plain,) = backbone.encode([torch.tensor(ids)], [every], causal=True, use_lora=False)
        for found, made in ((memory, kv), (text, plain)):
            keys, values = run_of(made, layer)
            found[KEYS].append(keys)
            found[VALUES].append(values)
        slots += memory[KEYS][-1].shape[0]
        listen(min(slots, spec.points), spec.points)
        if slots >= spec.points:
            break
    if not slots:
        raise ConfigError(f"{spec.file} has no text of {SHORTEST} tokens: give longer ones")
    result: dict[str, Any] = {"layer": layer}
    for kind in (KEYS, VALUES):
        a = torch.cat(memory[kind])[: spec.points].double()
        whole = torch.cat(text[kind]).double()
        b = whole[torch.linspace(0, len(whole) - 1, min(len(whole), spec.points)).long()]
        result[kind] = {"distance": distance(a, b), **projected(a, b)}
    return result


def run_of(kv: AnchorKV, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (slots, head_dim), fp32 on the CPU, of the first head of a layer that keeps something."""
    heads = kv.counts.shape[1]
    sizes = kv.counts.flatten().tolist()
    run = next(r for r in (*range(layer * heads, len(sizes)), *range(layer * heads)) if sizes[r])
    start = sum(sizes[:run])
    keys, values = (t[start : start + sizes[run]].float().cpu() for t in (kv.keys, kv.values))
    return keys, values


def distance(memory: torch.Tensor, text: torch.Tensor) -> float:
    """The mean distance of memory vectors (slots, d) to the nearest of the text's (tokens, d), over that of the text's
    to their nearest others."""
    among = torch.cdist(text, text)
    among.fill_diagonal_(torch.inf)
    return float(torch.cdist(memory, text).min(1).values.mean() / among.min(1).values.mean())


def projected(memory: torch.Tensor, text: torch.Tensor) -> dict[str, Any]:
    """Two coordinates of each vector by PCA and by t-SNE, {"pca": {"memory": [...], "text": [...]}, ...}."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError(f"t-SNE needs scikit-learn: {REMEDY}") from None
    both = torch.cat((memory, text)).numpy()
    near = min(PERPLEXITY, (len(both) - 1) / 3)
    made = {
        "pca": PCA(2, svd_solver="full").fit_transform(both),
        "tsne": TSNE(2, perplexity=near, init="pca", random_state=0).fit_transform(both),
    }
    return {
        name: {
            "memory": [[round(float(c), 4) for c in p] for p in points[: len(memory)]],
            "text": [[round(float(c), 4) for c in p] for p in points[len(memory) :]],
        }
        for name, points in made.items()
    }
