"""Flags that several commands share, and opening what they name."""

from __future__ import annotations

import difflib
import json
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_rag.errors import ConfigError, LibraryError

if TYPE_CHECKING:
    from sac_rag.config import IndexConfig
    from sac_rag.pipeline import SacRag

DEFAULT_LIBRARY = "sac.lib"

LibraryFolder = Annotated[str, typer.Option("--library", "-l", help="Folder of the library.", metavar="DIR")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, …", rich_help_panel="Computing")]
Dtype = Annotated[
    str, typer.Option(help="Number type of the model: auto, float32, bfloat16, float16.", rich_help_panel="Computing")
]


def check_present(library: str) -> None:
    """Fail before the slow imports when there is nothing at all; raises LibraryNotFound."""
    if not os.path.lexists(library):
        from sac_rag.library.library import Library

        Library.open(library)


@contextmanager
def opened(
    library: str,
    *,
    device: str,
    dtype: str,
    config: IndexConfig | None = None,
    write: bool = False,
    create: bool = False,
    fetch: Collection[str] | None = None,
) -> Iterator[SacRag]:
    """A library with its model, a spinner meanwhile. Arguments as of `SacRag.open`."""
    if not create:
        check_present(library)
    with console.working("loading the model"):
        from sac_rag.pipeline import SacRag

        rag = SacRag.open(library, config=config, write=write, create=create, fetch=fetch, device=device, dtype=dtype)
    with rag:
        yield rag


def matching(wanted: str, stored: Sequence[str], library: str) -> list[str]:
    """The stored uris that a name, as `sac ls` prints it, or a pattern stands for; a name goes before a pattern.

    Letters with accents may be one character there and two here: that is not seen, and programs change it.
    """
    exact = [uri for uri in (wanted, console.named(wanted)) if uri in stored]
    alike = [uri for uri in stored if _composed(uri) == _composed(console.named(wanted))]
    hits = exact[:1] or alike or [uri for uri in stored if fnmatchcase(uri, wanted)]
    if len(alike) > 1 and not exact:
        raise ConfigError(f"{wanted!r} may be {' or '.join(map(ascii, alike))}: give one of these as a JSON string")
    if not hits:
        near = difflib.get_close_matches(wanted, stored, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " `sac ls` prints what is there."
        raise LibraryError(f"no document {wanted!r} in {library}.{hint}")
    return hits


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def where_of(conditions: Sequence[str]) -> Mapping[str, Any] | None:
    """`key=value` conditions as a metadata filter: one key twice means either value.

    `year=2024` finds the number as well as the text, and a value in quotes is what `sac ls` prints such a name as.
    """
    found: dict[str, list[Any]] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or not key:
            raise ConfigError(f"--where is {condition!r}; write key=value, such as document=guide.md")
        found.setdefault(key, []).append(value)
        try:
            plain = json.loads(value)
        except ValueError:
            continue
        if plain is None or isinstance(plain, bool | int | float | str):
            found[key].append(plain)
    return found or None


def split_commas(values: Sequence[str]) -> list[str]:
    """Values of an option that may be repeated, written with commas, or both."""
    return [part for value in values for part in str(value).replace(",", " ").split()]


def numbers(values: Sequence[str], flag: str) -> list[float]:
    try:
        return [float(part) for part in split_commas(values)]
    except ValueError:
        raise ConfigError(f"{flag} is {', '.join(map(str, values))!r}; write numbers, such as 5 or 5,15") from None
