"""What a child process of an indexing run does: load what compresses and embeds, and make one order after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sac_rag.config import IndexConfig, from_mapping
from sac_rag.processes import Tell

if TYPE_CHECKING:
    from sac_rag.library.library import Library


def setup_of(library: Library, config: IndexConfig, *, device: str, dtype: str) -> dict[str, Any]:
    """What `serve` is told."""
    return {
        "folder": str(library.path),
        "fingerprint": library.fingerprint,
        "segment_bytes": library.segment_bytes,
        "config": dataclasses.asdict(config),
        "where": {"device": device, "dtype": dtype},
    }


def serve(setup: Mapping[str, Any], requests: Iterator[Mapping[str, Any]], tell: Tell) -> None:
    """Answer each `Work` with a `MakeResult`; see `processes.Child`.

    Raises LibraryMismatch where what is loaded here is not what the library was made with.
    """
    from sac_rag.models.kernels import bound_caches

    bound_caches()
    import torch

    from sac_rag.answer.engine import Encoder
    from sac_rag.indexing.make import Maker, Work
    from sac_rag.library.codecs import get_codec
    from sac_rag.library.opening import codec_state_of, compare
    from sac_rag.models.embedder import Embedder

    torch.set_num_threads(1)
    config, folder = from_mapping(IndexConfig, setup["config"]), Path(setup["folder"])
    # Whoever started this has both already; nothing is fetched here.
    how = {"option": config.option, **setup["where"]}
    encoder = Encoder(config.model, config.method, config.adapter, **how, fetch=False)
    embedder = Embedder.shared(config.embedder, device=str(encoder.device), fetch=False)
    compare(folder, setup["fingerprint"], encoder.fingerprint(config, embedder))
    codec = get_codec(config.codec, codec_state_of(folder))
    maker = Maker(encoder, embedder, codec, config.ratio, folder, setup["segment_bytes"])
    for request in requests:
        made = maker.make(Work.from_mapping(request), lambda step, count: tell(heard=[step, count]))
        tell(made=made.to_mapping())
