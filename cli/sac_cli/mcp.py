"""`sac mcp`: libraries as tools of an agent."""

from __future__ import annotations

from sac_cli import console
from sac_cli.options import DEFAULT_LIBRARY, Device, Dtype, Libraries, check_places
from sac_cli.shell import command
from sac_rag.errors import ConfigError


@command(
    "mcp",
    example="""
    sac mcp my.lib
    sac mcp handbook=my.lib notes.lib
    """,
)
def mcp(
    libraries: Libraries = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Give libraries to an agent as tools of the Model Context Protocol: search, ask, read_source, list_documents.

    An agent starts this command and speaks to it by standard input and output. Over HTTP the same tools are at /mcp of
    `sac serve`.
    """
    places = libraries or [DEFAULT_LIBRARY]
    check_places(places)
    try:
        from sac_rag.serve.mcp import make
    except ImportError as error:
        raise ConfigError(f'this needs {error.name}: pip install "sac-rag[serve]"') from None
    from sac_rag.serve.run import open_libraries

    with console.working("loading the model"):
        served = open_libraries(places, write=False, device=device, dtype=dtype)
    try:
        make(served).run("stdio")
    finally:
        served.close()
