"""`sac index`: compress documents into a library."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import fields, indexing
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Json, LibraryFolder, Wait, opened
from sac_cli.shell import command
from sac_rag.errors import LibraryNotFound
from sac_rag.models.kernels import bound_caches

if TYPE_CHECKING:
    from sac_rag.config import IndexConfig, ReadConfig

SETTINGS = fields.settings_of("sac_rag.config:IndexConfig", panel="Settings of a new library")
READING = fields.settings_of("sac_rag.config:ReadConfig", panel="Reading of files")

Paths = Annotated[list[str], typer.Argument(help="Files, folders or patterns such as 'docs/**/*.md'.", metavar="PATH")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Compress in this many processes of one thread each; without it, in this one (--engine ray: one a core).",
        metavar="N",
        rich_help_panel="Computing",
    ),
]
IndexEngine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Where workers are: processes of this machine; or ray: the cluster of RAY_ADDRESS, or one started here.",
        metavar="NAME",
        rich_help_panel="Computing",
    ),
]
Strict = Annotated[bool, typer.Option(help="Stop at the first unreadable file instead of skipping it.")]


@command(
    "index",
    settings=SETTINGS + READING,
    example="""
    sac index handbook/                                compress a folder into ./sac.lib
    sac index notes/ report.pdf --library my.lib --ratio 15
    sac index handbook/ --sync                         also forget files that are gone
    sac index handbook/ --workers 4                    four processes, one thread each
    sac index handbook/ --engine ray --workers 64      sixty-four actors of a Ray cluster
    sac index 'docs/**/*.md' --json | jq .tokens
    """,
)
def index(
    paths: Paths,
    library: LibraryFolder = DEFAULT_LIBRARY,
    sync: Annotated[bool, typer.Option(help="Also remove documents under the given folders that are gone.")] = False,
    strict: Strict = False,
    workers: Workers = None,
    engine: IndexEngine = "processes",
    wait: Wait = 0.0,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Compress documents into a library, or bring it up to date.

    Unchanged documents are skipped, changed ones replaced passage by passage. The settings of a library are fixed when
    it is made: later runs need none of them. What cannot be read is skipped and listed with its reason; the exit code
    is 1 where nothing could be read, and 0 otherwise.
    """
    indexing.check_paths(paths)
    if not os.path.lexists(library):
        indexing.check_files(paths)
    bound_caches()
    named = fields.given(SETTINGS, values)
    config, is_new = _config(library, named)
    # What only the library names is not fetched: it may be somebody else's.
    fetch = None if is_new else {"model", "embedder"} & named.keys()
    where = {"device": device, "dtype": dtype}
    with opened(library, config=config, write=True, create=True, fetch=fetch, wait=wait, **where) as rag:
        report = indexing.compress(
            rag, paths, sync=sync, strict=strict, workers=workers, engine=engine, reading=reading_of(values)
        )
        indexing.show(rag, report, as_json=as_json)


def reading_of(values: dict[str, Any]) -> ReadConfig:
    """How files are read, by the flags that were given."""
    from sac_rag.config import ReadConfig

    return ReadConfig(**fields.given(READING, values))


def _config(library: str, given: dict[str, Any]) -> tuple[IndexConfig | None, bool]:
    """(the library's own settings, or the defaults for a new one, with what was given on top; whether it is new)."""
    from sac_rag.config import IndexConfig

    if not given:
        return None, False
    from sac_rag.library.opening import head_of

    try:
        head_of(library)
    except LibraryNotFound:
        return IndexConfig(**given), True
    from sac_rag.pipeline import config_of

    return dataclasses.replace(config_of(library), **given), False
