"""What repair needs of a model: memories and vectors, made again from the text that a library holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sac_rag.answer.engine import Encoder
from sac_rag.config import IndexConfig
from sac_rag.indexing.make import Maker, Work
from sac_rag.indexing.plan import cut, embedded
from sac_rag.library.catalog import Head
from sac_rag.library.codecs import get_codec
from sac_rag.library.opening import compare
from sac_rag.library.repair import Remade
from sac_rag.models.embedder import Embedder
from sac_rag.records import Passage


def remade(
    folder: Path,
    head: Head,
    config: IndexConfig,
    compress: Sequence[Passage],
    embed: Sequence[Passage],
    *,
    codec_state: bytes | None,
    device: str,
    dtype: str,
) -> Remade:
    """Memories of the first passages and vectors of the second, as the library in `folder` was made.

    Raises LibraryMismatch where the model, adapter or embedder is not the one that it was made with.
    """
    made: dict[str, Any] = {"option": config.option, "device": device, "dtype": dtype}
    encoder = Encoder(config.model, config.method, config.adapter, **made)
    embedder = Embedder.shared(config.embedder, device=str(encoder.device))
    compare(folder, head.fingerprint, encoder.fingerprint(config, embedder))
    maker, out = Maker(encoder, embedder, get_codec(config.codec, codec_state), config.ratio, folder), Remade()
    for part in cut(compress):
        out.segments += maker.make(Work(compress=tuple((p.id, p.text) for p in part))).segments
    for part in cut(embed):
        out.vectors |= maker.make(Work(embed=tuple((p.id, embedded(p)) for p in part))).vectors
    return out
