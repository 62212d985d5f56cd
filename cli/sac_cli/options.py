"""Flags that several commands share, and opening what they name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sac_cli import console
from sac_rag.errors import ConfigError, LibraryError, did_you_mean
from sac_rag.foreign import parse_json

if TYPE_CHECKING:
    from sac_rag.config import IndexConfig
    from sac_rag.pipeline import SacRag
    from sac_rag.warm.client import Warm

DEFAULT_LIBRARY = "sac.lib"

LibraryFolder = Annotated[
    str,
    typer.Option("--library", "-l", help="Folder of the library; to read from, also a URL of one.", metavar="DIR"),
]
LibraryFolders = Annotated[
    str,
    typer.Option(
        "--library", "-l", help="Folder or URL of the library; several, with commas, are read as one.", metavar="DIR"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    float, typer.Option("--wait", min=0.0, help="Seconds to wait while another process writes.", metavar="SECONDS")
]
Model = Annotated[str, typer.Option(help="Base model: a name, a hub id, a folder or a .gguf file.")]
Method = Annotated[str, typer.Option(help="Compression method.")]
Adapter = Annotated[str, typer.Option(help='Its adapter: a folder, or "default".')]
Ratios = Annotated[list[str], typer.Option(help="Source tokens per anchor; repeat or separate with commas.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Questions of each file, drawn at random; all if left out.")]
Batch = Annotated[int, typer.Option(min=1, help="Questions decoded together.")]
KeptRuns = Annotated[
    str | None, typer.Option(help="Keep each finished run there; those found are not run again.", metavar="DIR")
]
Libraries = Annotated[
    list[str] | None, typer.Argument(help="Folders of libraries, or NAME=FOLDER.", metavar="LIBRARY…")
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, …", rich_help_panel="Computing")]
Dtype = Annotated[
    str, typer.Option(help="Number type of the model: auto, float32, bfloat16, float16.", rich_help_panel="Computing")
]


def local(library: str) -> str:
    """The folder of a library: of one in an object store, a copy that is up to date."""
    if "://" not in library:  # most are folders, and need nothing of what follows
        return library
    from sac_rag.places import SEPARATOR, places_of
    from sac_rag.remote import copy_of, is_remote

    places = places_of(library)
    if not any(map(is_remote, places)):
        return library
    with console.working("fetching the library"):
        return SEPARATOR.join(str(copy_of(place)) if is_remote(place) else place for place in places)


def check_present(library: str) -> None:
    """Fail before the slow imports when there is nothing at all, of a folder; raises LibraryNotFound."""
    if "://" not in library and not os.path.lexists(library):
        from sac_rag.library.library import Library
        from sac_rag.places import places_of

        for place in places_of(library):
            if not os.path.lexists(place):
                Library.open(place)


def check_places(places: Iterable[str]) -> None:
    """`check_present` for each of several libraries, FOLDER or NAME=FOLDER."""
    for place in places:
        check_present(place.partition("=")[2] if "=" in place else place)


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
    wait: float = 0.0,
) -> Iterator[SacRag]:
    """A library with its model, a spinner meanwhile. Arguments as of `SacRag.open`."""
    if not (create or write):
        library = local(library)
    if not create:
        check_present(library)
    with console.working("loading the model"):
        from sac_rag.pipeline import SacRag

        rag = SacRag.open(
            library, config=config, write=write, create=create, fetch=fetch, wait=wait, device=device, dtype=dtype
        )
    with rag:
        yield rag


@contextmanager
def answering(library: str, *, device: str, dtype: str, warm: bool) -> Iterator[SacRag | Warm]:
    """A library to ask: by the warm process that serves it, where there is one and `warm` lets it, else opened here."""

    library = local(library)

    def told(who: str) -> None:
        if console.state.verbose:
            console.hint(who)

    with ExitStack() as stack:

        def cold() -> SacRag:
            return stack.enter_context(opened(library, device=device, dtype=dtype))

        found = None
        if warm:
            from sac_rag.warm.client import Warm

            check_present(library)
            found = Warm.at(library, device, dtype, cold, told)
        if found is None:
            told("answered by this process")
        yield found or cold()


def matching(wanted: str, stored: Sequence[str], library: str, *, missing_ok: bool = False) -> list[str]:
    """The stored uris that a name, as `sac ls` prints it, or a pattern stands for; a name goes before a pattern.

    Letters with accents may be one character there and two here: that is not seen, and programs change it. Nor are
    runs of blanks seen.
    """
    name = console.named(wanted)
    exact = [uri for uri in (wanted, name) if uri in stored]
    alike = [uri for uri in stored if _composed(uri) == _composed(name)]
    alike = alike or [uri for uri in stored if console.one_line(uri) == wanted]
    hits = exact[:1] or alike or [uri for uri in stored if fnmatchcase(_composed(uri), _composed(wanted))]
    if len(alike) > 1 and not exact:
        raise ConfigError(f"{wanted!r} may be {' or '.join(map(ascii, alike))}: give one of these as a JSON string")
    if not hits and not missing_ok:
        hint = did_you_mean(wanted, stored) or " `sac ls` prints what is there."
        raise LibraryError(f"no document {wanted!r} in {library}.{hint}")
    return hits


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def where_of(conditions: Sequence[str]) -> Mapping[str, Any] | None:
    """`key=value` conditions as a metadata filter: one key twice means either value.

    `year=2024` finds the number as well as the text; so do !=, <, <=, > and >=. A value in quotes is what `sac ls`
    prints such a name as. A condition that begins with a brace is a filter in JSON, as `SacRag.ask(where=…)` takes it.
    All must hold.
    """
    if not conditions:
        return None
    from sac_rag.library.filters import all_of

    found: dict[str, list[Any]] = {}
    others: list[Mapping[str, Any]] = []
    for condition in conditions:
        if condition.lstrip().startswith("{"):
            others.append(_json(condition))
            continue
        match = _CONDITION.fullmatch(condition)
        if match is None:
            raise ConfigError(
                f"--where is {condition!r}; write key=value, such as document=guide.md, key>=value, or a filter in JSON"
            )
        key, sign, value = match.groups()
        values = _values(value)
        if sign == "=":
            found.setdefault(key, []).extend(values)
        elif sign == "!=":
            others.append({key: {"$nin": values}})
        else:
            ordered = [{key: {_SIGNS[sign]: v}} for v in values if v is not None and not isinstance(v, bool)]
            others.append({"$or": ordered} if len(ordered) > 1 else ordered[0])
    return all_of(found, *others)


_CONDITION = re.compile(r"([^=<>!]+)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_SIGNS = {"<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


def _values(text: str) -> list[Any]:
    """A text, and the number, truth, null or quoted text that it may stand for."""
    try:
        plain = parse_json(text)
    except ValueError:
        return [text]
    return [text, plain] if plain is None or isinstance(plain, bool | int | float | str) else [text]


def _json(condition: str) -> Mapping[str, Any]:
    from sac_rag.library.filters import fitting

    try:
        where: Mapping[str, Any] = parse_json(condition)
        fitting(where)
    except ValueError as error:
        raise ConfigError(f"--where is {condition!r}, which is no JSON: {error}") from None
    return where


def split_commas(values: Sequence[str]) -> list[str]:
    """Values of an option that may be repeated, written with commas, or both."""
    return [part for value in values for part in str(value).replace(",", " ").split()]


def numbers(values: Sequence[str], flag: str) -> list[float]:
    try:
        return [float(part) for part in split_commas(values)]
    except ValueError:
        raise ConfigError(f"{flag} is {', '.join(map(str, values))!r}; write numbers, such as 5 or 5,15") from None
