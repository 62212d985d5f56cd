"""`sac serve`: libraries over HTTP, in OpenAI's shapes, and a page to ask them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sac_cli import console, fields
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Libraries, check_places
from sac_cli.shell import command
from sac_rag.errors import ConfigError
from sac_rag.models.kernels import SERVING, bound_caches

SETTINGS = fields.settings_of("sac_rag.serve.settings:ServeConfig", panel="Serving")


@command(
    "serve",
    settings=SETTINGS,
    example="""
    sac serve my.lib
    sac serve handbook=my.lib notes.lib --port 9000
    sac serve my.lib --folder docs/                              POST …/sync brings it up to docs/
    sac serve my.lib --host 0.0.0.0 --keys keys.toml
    OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318 sac serve my.lib --otel
    """,
)
def serve(
    libraries: Libraries = None,
    folder: Annotated[
        list[str] | None,
        typer.Option(help="Folder that `sync` brings a library up to.", metavar="[NAME=]DIR", show_default=False),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="TOML file of keys, their rights and filters.", metavar="FILE")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    **values: Any,
) -> None:
    """Serve libraries over HTTP: OpenAI's chat, responses and embeddings, documents in and out, and a page.

    The address of the page is printed when it listens. Ctrl-C ends it when the answers under way are whole.
    """
    places = libraries or [DEFAULT_LIBRARY]
    from sac_rag.serve.settings import ServeConfig

    limits = ServeConfig(**fields.given(SETTINGS, values))
    run(places, folder or (), keys, limits, device=device, dtype=dtype)


def run(
    places: list[str], folders: Any, keys: str | None, limits: Any, *, device: str = "auto", dtype: str = "auto"
) -> None:
    """Open and serve; returns when the server has ended."""
    limits.check_reach(keys=keys is not None)
    bound_caches(SERVING)
    try:
        import fastapi  # noqa: F401
        import mcp  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'serving needs {error.name}: pip install "sac-rag[serve]"') from None
    if limits.otel:
        from sac_rag.serve import tracing

        tracing.check()
    check_places(places)
    with console.working("loading the model"):
        from sac_rag.serve.keys import Keys
        from sac_rag.serve.run import open_libraries
        from sac_rag.serve.run import serve as listen

        known = Keys.read(keys) if keys is not None else None
        libraries = open_libraries(places, folders, write=not limits.read_only, device=device, dtype=dtype)

    def told(url: str) -> None:
        console.hint("Ctrl-C ends it")
        print(url, flush=True)

    listen(libraries, limits, known, told=told)
