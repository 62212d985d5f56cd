"""Fitting the basis of the transform codec to an adapter, and what each codec makes of memories it has not seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sac_rag.answer.engine import Engine
from sac_rag.compress.adapter import write_atomic
from sac_rag.compress.anchor_kv import AnchorKV
from sac_rag.config import DEFAULT_MODEL, check_ratio
from sac_rag.errors import ConfigError
from sac_rag.library.basis import Basis
from sac_rag.library.codecs import CODECS, Codec, get_codec
from sac_rag.models.adapters import CODEC
from sac_rag.train.data import read_contexts

LONGEST = 256
"""Tokens of a passage: those of a library by default."""
FEWEST = 8
Listen = Callable[[str, int, int], None]
"""(what is done, how many passages, of how many)"""


@dataclass(frozen=True)
class Coded:
    """One codec on memories at one ratio that the basis was not fitted on."""

    codec: str
    ratio: float
    passages: int
    bytes_per_source_token: float
    key_error: float
    """Norm of the error of all keys over their norm; value_error likewise."""
    value_error: float


@dataclass(frozen=True)
class Fitted:
    """A basis, and rows by ratio and codec."""

    basis: Basis
    rows: tuple[Coded, ...]


def fit(
    files: Sequence[str | Path],
    *,
    model: str = DEFAULT_MODEL,
    method: str = "sac",
    adapter: str = "default",
    ratios: Sequence[float] = (5.0, 15.0),
    passages: int = 600,
    step: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    listen: Listen | None = None,
) -> Fitted:
    """Fit a `Basis` on the memories of passages out of `files` (as `sac train` reads them), shared out to the ratios.

    One passage in five is kept from it, and all codecs are measured on those. step: as in `Basis.fit`. Raises
    ConfigError when the files have too few passages.
    """
    for ratio in ratios:
        check_ratio(ratio)
    texts = list(_texts(files, passages, seed))
    if len(texts) < FEWEST * len(ratios):
        raise ConfigError(
            f"{len(texts)} passages for {len(ratios)} ratios; a basis needs {FEWEST} for each: give more text"
        )
    engine = Engine.shared(model, method, adapter, device=device, dtype=dtype)
    known: list[AnchorKV] = []
    unseen: dict[float, list[AnchorKV]] = {}
    done = 0
    for at, ratio in enumerate(ratios):
        part = texts[at :: len(ratios)]

        def tell(count: int, before: int = done, ratio: float = ratio) -> None:
            if listen:
                listen(f"compressing at {ratio:g}x", before + count, len(texts))

        memories = engine.compress(part, ratio, done=tell)
        done += len(part)
        cut = max(1, len(part) // 5)
        unseen[ratio], fitted = memories[:cut], memories[cut:]
        known += fitted
    basis = Basis.fit(known, step)
    rows = []
    for name in sorted(CODECS):
        codec = get_codec(name, basis.to_bytes())
        rows += [_coded(codec, ratio, memories) for ratio, memories in unseen.items()]
    return Fitted(basis, tuple(rows))


def store(folder: Path, basis: Basis) -> Path:
    """Put a basis into an adapter's folder, for the libraries that will be made with it."""
    write_atomic(folder / CODEC, basis.to_bytes())
    return folder / CODEC


def _texts(files: Sequence[str | Path], count: int, seed: int) -> Iterator[str]:
    """Texts of passages, drawn by chance, each file as often as the others."""
    for index, file in enumerate(files):
        contexts = [c.text for c in read_contexts(file) if c.text.strip()]
        random.Random(f"{seed}/{index}").shuffle(contexts)
        for text in contexts[: -(-count // len(files))]:
            start = random.Random(f"{seed}/{text[:64]}").randrange(max(1, len(text) - 4 * LONGEST))
            yield text[start : start + 4 * LONGEST]


def _coded(codec: Codec, ratio: float, memories: Sequence[AnchorKV]) -> Coded:
    tensors = [codec.encode(m) for m in memories]
    back = [codec.decode(t) for t in tensors]

    def error(name: str) -> float:
        pairs = [(getattr(b, name).float(), getattr(m, name).float()) for b, m in zip(back, memories, strict=True)]
        apart = torch.stack([(b - m).square().sum() for b, m in pairs]).sum()
        return float((apart / torch.stack([m.square().sum() for _, m in pairs]).sum()).sqrt())

    size = sum(t.nbytes for one in tensors for t in one.values())
    tokens = sum(m.source_len for m in memories)
    return Coded(codec.name, ratio, len(memories), size / tokens, error("keys"), error("values"))
