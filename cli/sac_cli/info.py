"""`sac info`: sizes of a library, and what it was made with."""

from __future__ import annotations

import dataclasses
import json

from sac_cli import console
from sac_cli.indexing import per_token
from sac_cli.options import DEFAULT_LIBRARY, Json, LibraryFolder, local
from sac_cli.shell import command


@command(
    "info",
    example="""
    sac info
    sac info --library my.lib --json | jq .bytes_per_source_token
    """,
)
def info(library: LibraryFolder = DEFAULT_LIBRARY, as_json: Json = False) -> None:
    """Show the sizes of a library and the fingerprint of what it was made with."""
    from sac_rag.library.library import Library

    with Library.open(local(library)) as opened:
        stats, fingerprint, path = opened.stats(), opened.fingerprint, opened.path
    if as_json:
        content = {"library": str(path), **dataclasses.asdict(stats)}
        content["bytes_per_source_token"] = stats.bytes_per_source_token
        console.emit({**content, "fingerprint": fingerprint})
        return
    sizes = ("kv_bytes", "dead_bytes", "catalog_bytes", "faiss_bytes", "lexical_bytes", "total_bytes")
    counts = ("generation", "codec", "documents", "passages", "anchors", "source_tokens")
    console.pairs(
        [
            ("library", path),
            *((name.replace("_", " "), getattr(stats, name)) for name in counts),
            *((name.replace("_", " "), console.size(getattr(stats, name))) for name in sizes),
            ("bytes per source token", per_token(stats)),
            ("segments", len(stats.segments)),
            *((name, v if isinstance(v, str) else json.dumps(v)) for name, v in sorted(fingerprint.items())),
        ]
    )
