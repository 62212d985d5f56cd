"""The correctness gate: composed KV against an exact reference, before a model first answers from a library."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch

from sac_rag.answer.engine import Engine
from sac_rag.compress.adapter import write_atomic
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Reading
from sac_rag.compress.placing import compose
from sac_rag.compress.rope import rotate
from sac_rag.config import fingerprint
from sac_rag.errors import GateError, MemoryDamaged, PassageGone
from sac_rag.library.library import Library
from sac_rag.models.cache import cache_root

PROBE = (
    "The lighthouse at Cape Verity was built in 1874 by the engineer Ada Quill. Its lamp burned whale oil until "
    "1911, when the harbour board paid for a gas burner made in Leeds. Who paid for the new burner in that year?"
)
SPLIT = 32
"""Tokens of the probe that become memory; the rest is read behind it."""


ROTATION = 1e-4
"""Largest error of two rotations against one, relative to the largest key."""
DRIFT = {torch.float32: 1e-3}
DRIFT_OTHERWISE = 0.6
"""Largest difference of log-probabilities, memory of all tokens against plain reading, among likely tokens."""
STORED = 0.15
"""Relative error of a stored passage against compressing it again."""


def check(engine: Engine, library: Library) -> None:
    """Measure and judge; a pass is noted in the cache for this library's fingerprint and these versions.

    An empty library has no stored passage to judge: it passes, and is judged when it is opened again. Raises GateError
    naming the error, its bound and what it means.
    """
    note = _note(engine, library)
    if note.exists():
        return
    with engine.busy(), torch.inference_mode():
        errors = {"rotation": _rotation(engine), "drift": _drift(engine)}
        if (stored := _stored(engine, library)) is not None:
            errors["stored"] = stored
    bounds = {
        "rotation": (ROTATION, "RoPE of this model is not composed as expected"),
        "drift": (DRIFT.get(engine.dtype, DRIFT_OTHERWISE), "memory does not read like the text it stands for"),
        "stored": (STORED, "stored memories are not what this model writes"),
    }
    for name, value in errors.items():
        bound, meaning = bounds[name]
        if not value <= bound:
            raise GateError(
                f"correctness gate: {name} error is {value:.3g}, at most {bound:.3g} is allowed: {meaning}. "
                "Index the documents again with this model and these library versions, or report it"
            )
    if "stored" in errors:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs another check next time
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, json.dumps(errors).encode())


def _rotation(engine: Engine) -> float:
    backbone = engine.method.backbone
    keys = torch.randn(4, SPLIT, backbone.head_dim, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    near, far = torch.arange(SPLIT), torch.arange(SPLIT) + 1000
    scale = backbone.rope_scaling
    twice = rotate(rotate(keys, near, backbone.inv_freq), torch.full((SPLIT,), 1000), backbone.inv_freq, scale)
    once = backbone.rotate_like_model(keys, far)
    return float((twice - once).abs().max() / keys.abs().max())


def _drift(engine: Engine) -> float:
    backbone = engine.method.backbone
    ids = torch.tensor(backbone.tokens(PROBE))
    head, tail = ids[:SPLIT], ids[SPLIT:]
    (kv,) = backbone.encode([head], [backbone.even(torch.arange(SPLIT))], causal=True, use_lora=False)
    memory = compose([kv], backbone.inv_freq, scaling=backbone.rope_scaling, dtype=backbone.dtype)
    scored = torch.arange(len(tail))
    through = backbone.read([memory], [Reading(tail, scored, 0)]).float().log_softmax(-1)
    plain = backbone.plain_logits(ids)[SPLIT:].float().log_softmax(-1)
    likely = plain > -5.0
    return float((through - plain).abs()[likely].max())


def _stored(engine: Engine, library: Library) -> float | None:
    for first in (i for d in library.documents() for i in library.passage_ids(d.uri)):
        try:
            (passage,), (stored,) = library.get([first]), library.load([first])
            break
        except (PassageGone, MemoryDamaged):  # removed by another thread just now, or of no use
            continue
    else:
        return None
    (fresh,) = engine.compress([passage.text], float(library.fingerprint["ratio"]))
    same = torch.equal(fresh.positions, stored.positions) and torch.equal(fresh.counts, stored.counts)
    if not same or fresh.source_len != stored.source_len:
        raise GateError(
            f"correctness gate: passage {first} has {_kept(stored)}, this model makes {_kept(fresh)}: index the "
            "documents again"
        )
    return max(_relative(fresh, stored, "keys"), _relative(fresh, stored, "values"))


def _kept(kv: AnchorKV) -> str:
    counts = kv.counts.flatten().tolist()
    return f"anchors at {kv.positions.tolist()[:6]}... of {kv.source_len} tokens, by heads {counts[:6]}..."


def _relative(a: AnchorKV, b: AnchorKV, name: str) -> float:
    x, y = getattr(a, name).float(), getattr(b, name).float()
    return float((x - y).norm() / x.norm())


def _note(engine: Engine, library: Library) -> Path:
    import transformers

    key = {
        "library": library.fingerprint,
        "codec": library.head.codec,
        "model": str(engine.path),
        "adapter": engine.adapter_sha256,
        "device": engine.device.type,
        "dtype": str(engine.dtype),
        "versions": [torch.__version__, transformers.__version__],
        "gate": 3,
    }
    return cache_root() / "gates" / f"{fingerprint(key)[:32]}.json"
