"""`sac add`: more documents into a library that is there."""

from __future__ import annotations

from typing import Any

from sac_cli import indexing
from sac_cli.index import READING, Paths, Strict, Workers, reading_of
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Json, LibraryFolder, Wait, opened
from sac_cli.shell import command
from sac_rag.models.kernels import bound_caches


@command(
    "add",
    settings=READING,
    example="""
    sac add minutes-june.docx
    sac add notes/ --library my.lib --json
    """,
)
def add(
    paths: Paths,
    library: LibraryFolder = DEFAULT_LIBRARY,
    strict: Strict = False,
    workers: Workers = None,
    wait: Wait = 0.0,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Add documents to a library, with the settings it was made with."""
    indexing.check_paths(paths)
    bound_caches()
    with opened(library, write=True, wait=wait, device=device, dtype=dtype) as rag:
        report = indexing.compress(rag, paths, strict=strict, workers=workers, reading=reading_of(values))
        indexing.show(rag, report, as_json=as_json)
