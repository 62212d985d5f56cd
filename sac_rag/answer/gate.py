"""The correctness gate: composed KV against an exact reference, before a model first answers from a library."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sac_rag.answer.engine import Encoder, Engine
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.compress.backbone import Reading
from sac_rag.compress.placing import compose
from sac_rag.compress.rope import rotate
from sac_rag.config import fingerprint
from sac_rag.errors import GateError, MemoryDamaged, PassageGone
from sac_rag.library.joined import AnyLibrary
from sac_rag.library.library import Library
from sac_rag.models.cache import cache_root, write_note
from sac_rag.models.notes import version_of

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
"""Relative error of a stored passage against compressing it again, both as the library's codec gives them back: what
that loses is no error, and may be more than this for a short passage."""
COMMON = 0.9
"""Share of its slots that a stored passage has in common with compressing it again, where the model's own numbers
choose them (`Method.weighs`): other kernels round otherwise, and of two tokens that weigh alike another one stays."""
PASSAGES_AT_ONCE = 16
"""Passages compressed at once where many are compared."""


def check(engine: Engine, library: Library) -> None:
    """Measure and judge. What depends on model and settings alone is measured once, a stored passage once for each
    generation of each library; a pass is noted in the cache.

    An empty library has no stored passage to judge: it passes, and is judged when it is opened again. Raises GateError
    naming the error, its bound and what it means.
    """
    settings, note = _settings_note(engine, library), _note(engine, library)
    generation = library.head.generation
    if not settings.exists():
        with engine.busy(), torch.inference_mode():
            errors = {"rotation": _rotation(engine), "drift": _drift(engine)}
        _judge("rotation", errors["rotation"], ROTATION, "RoPE of this model is not composed as expected")
        bound = DRIFT.get(engine.dtype, DRIFT_OTHERWISE)
        _judge("drift", errors["drift"], bound, "memory does not read like the text it stands for")
        write_note(settings, json.dumps(errors))
    if _noted(note) == generation:
        return
    with engine.busy(), torch.inference_mode():
        stored = _stored(engine, library)
    if stored is not None:
        _judge("stored", stored, STORED, "stored memories are not what this model writes")
        # Its name is what tags are signed by, and the cache may be others' to read.
        name = fingerprint({"library": library.head.library})[:32]
        write_note(note, json.dumps({"stored": stored, "library": name, "generation": generation}))


def mismatches(encoder: Encoder, library: AnyLibrary, ids: Sequence[str]) -> Iterator[str]:
    """Compare stored memories with what the encoder makes of their text; a line for each that is not that."""
    for start in range(0, len(ids), PASSAGES_AT_ONCE):
        some, stored = [], []
        for passage_id in ids[start : start + PASSAGES_AT_ONCE]:
            try:
                stored += library.load([passage_id])
                some += library.get([passage_id])
            except MemoryDamaged as e:
                yield str(e)
        fresh = _made_again(encoder, library, [p.text for p in some])
        for passage, made, kept in zip(some, fresh, stored, strict=True):
            name = f"the memory of passage {passage.id} of {passage.document!r}"
            if not _same_places(made, kept, encoder.method.weighs):
                yield f"{name} has {_kept(kept)}, the model makes {_kept(made)}; `sac repair` does not mend that"
            elif not (error := _error(made, kept)) <= STORED:
                yield f"{name} is not what the model makes of its text (relative error {error:.3g}, not {STORED:.3g})"


def _judge(name: str, value: float, bound: float, meaning: str) -> None:
    if not value <= bound:
        raise GateError(
            f"correctness gate: {name} error is {value:.3g}, at most {bound:.3g} is allowed: {meaning}. "
            "Index the documents again with this model and these library versions, or report it"
        )


def _noted(note: Path) -> int | None:
    """The generation that a note says passed."""
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    return found.get("generation") if isinstance(found, dict) else None


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
    """The largest error of two stored passages: the first, and one that another generation may not choose."""
    ids = [i for d in library.documents() for i in library.passage_ids(d.uri)]
    turn = library.head.generation % len(ids) if ids else 0
    found: list[float] = []
    for passage_id in dict.fromkeys([*ids[turn : turn + 1], *ids]):
        try:
            (passage,), (stored,) = library.get([passage_id]), library.load([passage_id])
        except (PassageGone, MemoryDamaged):  # removed by another thread just now, or of no use
            continue
        (fresh,) = _made_again(engine, library, [passage.text])
        if not _same_places(fresh, stored, engine.method.weighs):
            raise GateError(
                f"correctness gate: passage {passage_id} has {_kept(stored)}, this model makes {_kept(fresh)}: index "
                "the documents again"
            )
        found.append(_error(fresh, stored))
        if len(found) == 2:
            break
    return max(found, default=None)


def _made_again(encoder: Encoder, library: AnyLibrary, texts: Sequence[str]) -> list[AnchorKV]:
    """What the library would give for these texts, were they stored now."""
    codec = library.codec()
    made = encoder.compress(texts, float(library.fingerprint["ratio"]))
    return [codec.decode(codec.encode(kv)) for kv in made]


def _same_places(a: AnchorKV, b: AnchorKV, weighs: bool) -> bool:
    """Whether both keep the same tokens; weighs: whether most of them will do."""
    if a.source_len != b.source_len or a.counts.shape != b.counts.shape:
        return False
    if not weighs:
        return torch.equal(a.positions, b.positions) and torch.equal(a.counts, b.counts)
    common = torch.isin(_places(a), _places(b)).sum()
    return a.positions.numel() == b.positions.numel() and bool(common >= COMMON * a.positions.numel())


def _places(kv: AnchorKV) -> torch.Tensor:
    """A number for each slot, (slots,): its run and its token."""
    return kv.slots.runs() * kv.source_len + kv.positions.cpu()


def _error(a: AnchorKV, b: AnchorKV) -> float:
    """The larger of the relative errors of keys and values, of the slots that both have."""
    mine, theirs = _places(a), _places(b)
    at, to = torch.isin(mine, theirs).nonzero()[:, 0], torch.isin(theirs, mine).nonzero()[:, 0]
    return max(_relative(getattr(a, name)[at], getattr(b, name)[to]) for name in ("keys", "values"))


def _kept(kv: AnchorKV) -> str:
    counts = kv.counts.flatten().tolist()
    return f"anchors at {kv.positions.tolist()[:6]}... of {kv.source_len} tokens, by heads {counts[:6]}..."


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.float(), b.float()
    return float((x - y).norm() / x.norm())


def _note(engine: Engine, library: Library) -> Path:
    """Where a pass of this library is noted."""
    return _place({"library": library.head.library, **_settings(engine, library)})


def _settings_note(engine: Engine, library: Library) -> Path:
    """Where a pass of these settings is noted."""
    return _place(_settings(engine, library))


def _place(key: Mapping[str, Any]) -> Path:
    return cache_root() / "gates" / f"{fingerprint(key)[:32]}.json"


def _settings(engine: Engine, library: Library) -> dict[str, Any]:
    return {
        "fingerprint": library.fingerprint,
        "codec": library.head.codec,
        "model": str(engine.path),
        "adapter": engine.adapter_sha256,
        "device": engine.device.type,
        "dtype": str(engine.dtype),
        "versions": [torch.__version__, version_of("transformers")],
        "gate": 4,
    }
