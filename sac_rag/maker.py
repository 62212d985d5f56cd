"""What another process of an indexing run does: load what compresses and embeds, and make one order after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sac_rag.config import IndexConfig, from_mapping
from sac_rag.processes import Tell

if TYPE_CHECKING:
    from sac_rag.indexing.make import Maker
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
    """Answer each `Work` with a `MakeResult`; see `processes.Child`. Raises as `maker_of` does."""
    from sac_rag.indexing.make import Work
    from sac_rag.library.opening import codec_state_of

    folder = Path(setup["folder"])
    maker = maker_of(setup, folder, codec_state_of(folder))
    for request in requests:
        made = maker.make(Work.from_mapping(request), lambda step, count: tell(heard=[step, count]))
        tell(made=made.to_mapping())


def maker_of(setup: Mapping[str, Any], folder: Path, codec_state: bytes | None) -> Maker:
    """What makes orders of a library, loaded in a process of its own, which computes in one thread from now on.

    folder: where it writes segments. codec_state: what the library's codec was fitted to. Raises LibraryMismatch where
    what is loaded here is not what the library was made with.
    """
    from sac_rag.models.kernels import bound_caches

    bound_caches()
    import torch

    from sac_rag.answer.engine import Encoder
    from sac_rag.indexing.make import Maker
    from sac_rag.library.codecs import get_codec
    from sac_rag.library.opening import compare
    from sac_rag.models.embedder import Embedder

    torch.set_num_threads(1)
    config = from_mapping(IndexConfig, setup["config"])
    # Whoever started this has both already; nothing is fetched here.
    how = {"option": config.option, **setup["where"]}
    encoder = Encoder(config.model, config.method, config.adapter, **how, fetch=False)
    embedder = Embedder.shared(config.embedder, device=str(encoder.device), fetch=False)
    compare(Path(setup["folder"]), setup["fingerprint"], encoder.fingerprint(config, embedder))
    codec = get_codec(config.codec, codec_state)
    return Maker(encoder, embedder, codec, config.ratio, folder, setup["segment_bytes"])
